"""Charts: what is drawn is where the data say, and everything drawn can be read without seeing it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from heliostat.report.charts.chart import HEIGHT, WIDTH, Chart, Series


def chart(*points: tuple[float, float | None], **how: object) -> Chart:
    line = {key: how.pop(key) for key in ("band", "dots", "smoothed", "colour", "dash") if key in how}
    return Chart("c", "Entropy", "nats", [Series("entropy", points, **line)], **how)  # type: ignore[arg-type]


def drawn(picture: Chart, kind: str) -> list[list[list[tuple[int, int]]]]:
    """Absolute places of every path of a kind, decoded from the drawing: paths, strokes of a path, points."""
    paths = []
    for path in ElementTree.fromstring(picture.svg()).iter("path"):
        if path.get("class", "").split()[0] == kind:
            paths.append([_absolute(stroke) for stroke in re.findall(r"M[^M]+", path.get("d", ""))])
    return paths


def _absolute(stroke: str) -> list[tuple[int, int]]:
    start, *rest = re.split(r"[lh]", stroke[1:])
    x, y = map(int, start.split())
    places = [(x, y)]
    moves = [int(move) for move in re.findall(r"-?\d+", rest[0])] if "l" in stroke else []
    for dx, dy in zip(moves[::2], moves[1::2], strict=True):
        x, y = x + dx, y + dy
        places.append((x, y))
    return places


def test_a_line_passes_through_its_data() -> None:
    picture = chart(*[(float(x), (x * 7 % 11) / 10) for x in range(20)])
    ((places,),) = drawn(picture, "line")
    for (x, y), (px, py) in zip(picture.series[0].points, places, strict=True):
        assert y is not None
        assert px == pytest.approx(WIDTH * picture.x_scale.fraction(x), abs=0.51)
        assert py == pytest.approx(HEIGHT * (1 - picture.y_scale.fraction(y)), abs=0.51)


def test_rounding_does_not_add_up_along_a_long_line() -> None:
    picture = chart(*[(float(x), x / 3) for x in range(350)], smoothed=False)
    ((places,),) = drawn(picture, "line")
    assert places[-1] == (WIDTH, round(HEIGHT * (1 - picture.y_scale.fraction(349 / 3))))


def test_lines_break_at_values_that_were_not_finite() -> None:
    (strokes,) = drawn(chart((1, 1.0), (2, 2.0), (3, None), (4, 1.5), (5, float("nan")), (6, 1.0), (7, 2.0)), "line")
    assert [len(stroke) for stroke in strokes] == [2, 1, 2]


def test_a_single_point_is_drawn_in_the_middle_and_visible() -> None:
    picture = chart((12, 0.7))
    assert drawn(picture, "line") == [[[(WIDTH // 2, HEIGHT - round(HEIGHT * picture.y_scale.fraction(0.7)))]]]
    assert "h0" in picture.svg()  # round caps turn a line of no length into a dot


def test_a_constant_series_is_a_level_line_inside_the_axis() -> None:
    ((places,),) = drawn(chart(*[(float(x), 24.0) for x in range(10)]), "line")
    assert len({y for _, y in places}) == 1
    assert 0 < places[0][1] < HEIGHT


def test_nothing_to_draw_is_known_before_drawing() -> None:
    assert chart().is_empty
    assert chart((1, None), (2, float("nan"))).is_empty
    assert not chart((1, None), (2, 0.0)).is_empty
    ElementTree.fromstring(chart().svg())


def test_long_runs_are_thinned_in_drawing_and_in_data_and_are_averaged() -> None:
    picture = chart(*[(float(x), float(x % 13)) for x in range(5000)])
    assert sum(len(stroke) for stroke in drawn(picture, "raw")[0]) <= 360
    assert sum(len(stroke) for stroke in drawn(picture, "line")[0]) <= 180
    (line,) = picture.hover_data()["lines"]
    assert len(line["x"]) == len(line["y"]) <= 360


def test_hover_data_are_measured_values_not_averages() -> None:
    points = [(float(x), float(x % 13)) for x in range(100)]
    (line,) = chart(*points).hover_data()["lines"]
    assert list(zip(line["x"], line["y"], strict=True)) == points


def test_bands_enclose_their_line() -> None:
    band = [(x, 0.4 - 0.1 * x, 0.6 + 0.1 * x) for x in range(3)]
    picture = chart((0, 0.5), (1, 0.5), (2, 0.5), band=band, dots=True, bounds=(0.0, 1.0))
    (path,) = [p for p in ElementTree.fromstring(picture.svg()).iter("path") if "band" in p.get("class", "")]
    places = [tuple(map(int, pair.split())) for pair in re.findall(r"\d+ \d+", path.get("d", ""))]
    assert places == [(0, 400), (1000, 300), (2000, 200), (2000, 800), (1000, 700), (0, 600)]
    assert picture.hover_data()["lines"][0]["band"] == [(0.4, 0.6), (0.3, 0.7), (0.2, 0.8)]


def test_spread_makes_the_axis_logarithmic_only_where_that_is_allowed() -> None:
    points = [(float(x), 10.0 ** (x % 5)) for x in range(20)]
    assert chart(*points, may_log=True).hover_data()["log"]
    assert not chart(*points).hover_data()["log"]


def test_a_reference_joins_a_near_axis_and_stays_out_of_a_far_one() -> None:
    near = chart((1, 0.8), (2, 0.9), reference=(1.0, "solved"))
    assert near.shows_reference
    assert 'class="reference"' in near.svg()
    far = chart((1, 1e-6), (2, 2e-6), reference=(1e-3, "bound"))
    assert not far.shows_reference
    assert far.y_scale.high < 1e-5
    assert 'class="reference"' not in far.svg()


def test_every_line_has_its_own_colour_and_dash_far_beyond_the_palette() -> None:
    looks = {Series("", (), colour=colour).css_class.rsplit(" ", 1)[0] for colour in range(18)}
    assert len(looks) == 18


def test_a_chart_says_in_words_what_it_shows() -> None:
    assert chart((1, 1.25), (9, 0.5)).description() == "Line chart of Entropy. entropy: 1.25 at step 1, 0.5 at 9."
    assert chart().description() == "Line chart of Entropy. No values."

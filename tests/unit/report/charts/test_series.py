"""Series: gaps stay gaps, thinning keeps what matters, averages average."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.report.charts.series import ends, segments, smooth, thin

series = st.lists(st.none() | st.floats(-1e6, 1e6), max_size=400).map(
    lambda ys: [(float(x), y) for x, y in enumerate(ys)]
)


def test_gaps_split_a_line_and_lone_points_survive() -> None:
    points = [(0.0, 1.0), (1.0, None), (2.0, 2.0), (3.0, float("nan")), (4.0, None), (5.0, 3.0), (6.0, 4.0)]
    assert segments(points) == [[(0.0, 1.0)], [(2.0, 2.0)], [(5.0, 3.0), (6.0, 4.0)]]
    assert segments([(0.0, None)]) == []


@given(series, st.integers(4, 60))
def test_thinning_keeps_only_measured_points_and_every_extreme(
    points: list[tuple[float, float | None]], most: int
) -> None:
    whole, kept = segments(points), thin(points, most)
    assert len(kept) == len(whole)
    for before, after in zip(whole, kept, strict=True):
        assert set(after) <= set(before)
        assert after == sorted(after)
        assert (after[0], after[-1]) == (before[0], before[-1])
        assert {max(y for _, y in after), min(y for _, y in after)} == {
            max(y for _, y in before),
            min(y for _, y in before),
        }


def test_thinning_a_long_run_leaves_few_points_and_one_spike_among_thousands() -> None:
    points = [(float(x), 1000.0 if x == 7777 else float(x % 7)) for x in range(20_000)]
    (kept,) = thin(points, 360)
    assert len(kept) <= 360
    assert (7777.0, 1000.0) in kept


def test_short_series_are_left_alone() -> None:
    points = [(float(x), float(x)) for x in range(360)]
    assert thin(points, 360) == [points]


@given(st.integers(1, 80), st.integers(0, 20), st.floats(-10, 10))
def test_the_average_of_a_constant_is_that_constant(length: int, half_width: int, value: float) -> None:
    averaged = smooth([(float(x), value) for x in range(length)], half_width)
    assert [y for _, y in averaged] == pytest.approx([value] * length)


def test_averages_keep_gaps_leave_straight_lines_straight_and_reduce_noise() -> None:
    line = [(float(x), 2.0 * x) for x in range(30)]
    assert smooth(line, 3)[3:-3] == line[3:-3]
    assert smooth(line, 0) == line
    assert smooth([(0.0, 1.0), (1.0, None), (2.0, 3.0)], 1)[1] == (1.0, None)
    zigzag = smooth([(float(x), float((-1) ** x)) for x in range(40)], 4)
    assert max(abs(y or 0) for _, y in zigzag) < 0.25


def test_ends_are_means_of_the_outer_tenths() -> None:
    assert ends([(float(x), float(x)) for x in range(100)]) == (4.5, 94.5)
    assert ends([(0.0, 1.0), (1.0, None)]) is None

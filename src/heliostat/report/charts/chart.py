"""Line charts: series in, one accessible SVG with its legend out, and the data its hover values are read from.

The drawing area is stretched to any width, while lines keep their thickness and text its size: axes are placed in
percent, and only the data live in stretched coordinates. So one drawing serves a phone and a wide screen.

Left out: bars (``bars``), the choice of series (``panels``), and colours (``style.css``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from heliostat.report.charts.scales import Scale, format_value, linear_scale, log_scale, step_scale, wants_log
from heliostat.report.charts.series import Point, Points, segments, smooth, thin
from heliostat.report.html.markup import Html, element

WIDTH, HEIGHT = 2000, 1000  # stretched drawing units: finer than any screen, and whole numbers keep the page small
NUM_COLOURS = 6
MIN_TO_SMOOTH = 40  # shorter series are readable as they are


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        points: ``(x, y)``, x ascending; y is ``None`` where the line must break.
        colour: 0-based; colours repeat after six, then with another dash.
        dash: 0 solid, 1 dashed, 2 dotted, 3 both; tells two lines of one colour apart.
        band: ``(x, low, high)``, an interval around the line.
        dots: mark each point; for the few points of an evaluation.
        run: 0-based index of the run it belongs to, so that the page can hide a run.
        smoothed: draw single points faintly and a moving average over them.
    """

    label: str
    points: Points
    colour: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    run: int = 0
    smoothed: bool = True

    @property
    def css_class(self) -> str:
        """Classes that give the line its colour and dash and say which run it belongs to."""
        dash = (self.dash + self.colour // NUM_COLOURS) % 4
        return f"c{self.colour % NUM_COLOURS + 1} d{dash} run{self.run}"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn.

    Attributes:
        unit: one of the units of ``METRICS``; ``fraction`` is written as percent.
        bounds: fixed ends of the vertical axis.
        reference: a level to compare with, drawn dashed, with its name.
        may_log: use a logarithmic axis if the values spread over more than two powers of ten.
        x_name: the quantity on the horizontal axis.
        max_points: points kept per line.
    """

    identifier: str
    title: str
    unit: str
    series: Sequence[Series]
    bounds: tuple[float, float] | None = None
    reference: tuple[float, str] | None = None
    may_log: bool = False
    x_name: str = "step"
    max_points: int = 360
    x_scale: Scale = field(init=False)
    y_scale: Scale = field(init=False)

    def __post_init__(self) -> None:
        xs = [x for line in self.series for x, _ in line.points] or [0.0, 1.0]
        ys = [y for line in self.series for stretch in segments(line.points) for _, y in stretch]
        edges = [edge for line in self.series for _, low, high in line.band for edge in (low, high)]
        marks = [self.reference[0]] if self.reference and _near(self.reference[0], ys) else []
        log = self.may_log and self.bounds is None and wants_log(ys)
        scale = log_scale([*ys, *edges, *marks]) if log else linear_scale([*ys, *edges, *marks], self.bounds)
        object.__setattr__(self, "x_scale", step_scale(min(xs), max(xs)))
        object.__setattr__(self, "y_scale", scale)

    @property
    def shows_reference(self) -> bool:
        """Whether the reference level lies on the axis."""
        return self.reference is not None and self.y_scale.low <= self.reference[0] <= self.y_scale.high

    @property
    def is_empty(self) -> bool:
        """Whether no line has a single finite value."""
        return not any(segments(line.points) for line in self.series)

    def svg(self) -> Html:
        """Draw the chart: grid, labels, then bands and lines."""
        drawing = [
            *(_band(line, self.x_scale, self.y_scale) for line in self.series if line.band),
            *(part for line in self.series for part in self._line(line)),
        ]
        data = element(
            "svg",
            drawing,
            class_="data",
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            preserveAspectRatio="none",
            overflow="visible",
        )
        return element(
            "svg", self._grid(), self._reference(), data, width="100%", height="100%", aria_hidden="true", class_="axes"
        )

    def hover_data(self) -> Mapping[str, Any]:
        """Return the data of hover values: the scales' ends, and each line's points."""
        lines = []
        for line in self.series:
            points = [point for stretch in thin(line.points, self.max_points) for point in stretch]
            band = {x: (_short(low), _short(high)) for x, low, high in line.band}
            entry: dict[str, Any] = {
                "label": line.label,
                "css": line.css_class,
                "run": line.run,
                "x": [int(x) if x == int(x) else x for x, _ in points],
                "y": [_short(y) for _, y in points],
            }
            if band:
                entry["band"] = [band.get(x) for x, _ in points]
            lines.append(entry)
        x, y = self.x_scale, self.y_scale
        return {"x": [x.low, x.high], "y": [y.low, y.high], "log": y.log, "unit": self.unit, "name": self.x_name,
                "lines": lines}  # fmt: skip

    def description(self) -> str:
        """Describe the chart in words, for readers who cannot see it."""
        parts = []
        for line in self.series:
            flat = [point for stretch in segments(line.points) for point in stretch]
            if flat:
                first, last = (format_value(y, self.unit) for y in (flat[0][1], flat[-1][1]))
                parts.append(f"{line.label}: {first} at {self.x_name} {flat[0][0]:g}, {last} at {flat[-1][0]:g}")
        return f"Line chart of {self.title}. {'; '.join(parts) or 'No values'}."

    def _grid(self) -> list[Html]:
        ys = [f"{100 * (1 - self.y_scale.fraction(tick)):.4g}%" for tick in self.y_scale.ticks]
        xs = [f"{100 * self.x_scale.fraction(tick):.4g}%" for tick in self.x_scale.ticks]
        names = [format_value(tick) for tick in self.x_scale.ticks]
        return [
            element("g", [element("line", x1="0", x2="100%", y1=y, y2=y) for y in ys], class_="grid"),
            element(
                "g",
                [
                    element("text", label, x="-8", y=y, dy=".35em")
                    for label, y in zip(self.y_scale.labels(self.unit), ys, strict=True)
                ],
                class_="ylabels",
            ),
            element(
                "g",
                [element("text", name, x=x, y="100%", dy="18") for name, x in zip(names, xs, strict=True)],
                class_="xlabels",
            ),
            element("text", self.x_name, x="-8", y="100%", dy="18", class_="xname"),
        ]

    def _reference(self) -> Html:
        if self.reference is None or not self.shows_reference:
            return Html("")
        y = f"{100 * (1 - self.y_scale.fraction(self.reference[0])):.4g}%"
        return element("line", x1="0", x2="100%", y1=y, y2=y, class_="reference")

    def _line(self, line: Series) -> list[Html]:
        raw = thin(line.points, self.max_points)
        num_points = sum(len(stretch) for stretch in segments(line.points))
        if line.dots:
            return [self._path(raw, line, "line"), *self._dots(raw, line)]
        if not line.smoothed or num_points < MIN_TO_SMOOTH:
            return [self._path(raw, line, "line")]
        averaged = smooth(line.points, max(2, num_points // 40))
        return [self._path(raw, line, "raw"), self._path(thin(averaged, self.max_points // 2), line, "line")]

    def _path(self, stretches: list[list[Point]], line: Series, kind: str) -> Html:
        path = "".join(_trace(stretch, self.x_scale, self.y_scale) for stretch in stretches)
        return element("path", d=path, class_=f"{kind} {line.css_class}")

    def _dots(self, stretches: list[list[Point]], line: Series) -> list[Html]:
        # A line of no length with round caps stays a circle however the drawing is stretched; a circle would not.
        return [
            element(
                "path",
                element("title", f"{line.label}, {self.x_name} {x:g}: {format_value(y, self.unit)}"),
                d=f"M{_place(x, self.x_scale, WIDTH)} {HEIGHT - _place(y, self.y_scale, HEIGHT)}h0",
                class_=f"dot {line.css_class}",
            )
            for stretch in stretches
            for x, y in stretch
        ]


def _place(value: float, scale: Scale, size: int) -> int:
    return round(size * scale.fraction(value))


def _trace(stretch: list[Point], x_scale: Scale, y_scale: Scale) -> str:
    """Return path commands through the points, relative to save space; a lone point is a dot."""
    places = [(_place(x, x_scale, WIDTH), HEIGHT - _place(y, y_scale, HEIGHT)) for x, y in stretch]
    if len(places) == 1:
        return f"M{places[0][0]} {places[0][1]}h0"
    moves = [f"{x1 - x0} {y1 - y0}" for (x0, y0), (x1, y1) in pairwise(places)]
    return f"M{places[0][0]} {places[0][1]}l" + " ".join(moves).replace(" -", "-")


def _band(line: Series, x_scale: Scale, y_scale: Scale) -> Html:
    upper = [(_place(x, x_scale, WIDTH), HEIGHT - _place(high, y_scale, HEIGHT)) for x, _, high in line.band]
    lower = [(_place(x, x_scale, WIDTH), HEIGHT - _place(low, y_scale, HEIGHT)) for x, low, _ in line.band]
    outline = "L".join(f"{x} {y}" for x, y in [*upper, *reversed(lower)])
    return element("path", d=f"M{outline}Z", class_=f"band {line.css_class}")


def _near(level: float, values: Sequence[float]) -> bool:
    """Return whether a reference level can join the axis without flattening the data."""
    if not values:
        return False
    low, high = min(values), max(values)
    span = max(high - low, 0.25 * max(abs(low), abs(high)), 1e-12)
    return low - 1.5 * span <= level <= high + 1.5 * span


def _short(value: float) -> float:
    return float(f"{value:.4g}")

"""Charts filled from runs: the hero, pass@k, one figure per panel, and the frame they all stand in.

One run: a colour per line. Several runs: a colour per run, and dashes tell a run's own lines apart, so a colour means
the same run in every figure of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.report.charts.axes import Axis, step_axis
from heliostat.report.charts.chart import Chart, Series
from heliostat.report.charts.panels import ChartPanel
from heliostat.report.charts.scales import format_value
from heliostat.report.charts.series import ends
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.outcome import pass_at_1_by_step, pass_curve, summary_curve
from heliostat.report.runs.read import Run
from heliostat.statistics import Estimate

DEADBAND = 0.1  # of the guard's controllers
AFTER, BEFORE = 0, 5  # colours of the trained policy and of the one it started from


@dataclass
class Figures:
    """Draws figures and collects the data that their hover values are read from.

    Attributes:
        axis: the horizontal axis of charts over training; ``None``: steps.
        hover: by chart identifier, the data of hover values; filled as figures are drawn.
    """

    runs: Sequence[Run]
    axis: Axis | None = None
    hover: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._axis = self.axis or step_axis(self.runs)

    @property
    def several(self) -> bool:
        """Whether the page compares runs."""
        return len(self.runs) > 1

    def hero(self) -> Html | None:
        """Draw held-out pass@1 with its interval over the training success rate."""
        lines = []
        for index, run in enumerate(self.runs):
            measured = [(step, estimate) for step, estimate in pass_at_1_by_step(run) if step >= 0]
            held_out = [(step, estimate.value) for step, estimate in measured]
            band = [(step, estimate.low, estimate.high) for step, estimate in measured]
            lines.append(self._line(index, 0, "held-out pass@1", held_out, band=band, dots=True))
            lines.append(self._line(index, 1, "training success", run.series("reward/success")))
        chart = self._chart("pass-1", "Held-out pass@1", "fraction", _drawable(lines), bounds=(0.0, 1.0))
        return self._figure(
            chart,
            "Held-out pass@1 is the chance that one sampled answer to an unseen problem is right; the band is its 95% "
            "interval over problems. Training success is the same for the problems trained on: if it rises alone, "
            "the model is memorising.",
            ("held-out pass@1", "training success"),
            wide=True,
        )

    def pass_at_k(self) -> Html | None:
        """Draw pass@k before and after, against k."""
        lines = []
        for index, run in enumerate(self.runs):
            for phase, name, colour in (("after", "after", AFTER), ("before", "before", BEFORE)):
                rows = [row for row in run.evaluations if row.phase == phase]
                curve = pass_curve(rows) or summary_curve(run, phase)
                lines.append(self._curve(index, phase == "before", name, curve, colour))
        drawable = [line for line in _drawable(lines) if len(line.points) > 1]
        chart = Chart("pass-k", "Pass@k before and after", "fraction", drawable, bounds=(0.0, 1.0), x_name="k")
        return self._figure(
            chart,
            "The chance that at least one of k answers is right, estimated without bias from all samples. A rise at "
            "k = 1 alone means that the model finds more reliably what it could already find; a rise at large k, that "
            "it solves problems it could not solve before.",
            ("after", "before"),
            colours=(AFTER, BEFORE),
        )

    def entropy_band(self) -> Html | None:
        """Draw entropy and the band that the guard would hold it in."""
        lines = []
        for index, run in enumerate(self.runs):
            targets = [(x, y) for x, y in run.series("guard/entropy_target") if y is not None]
            band = [(x, (1 - DEADBAND) * y, (1 + DEADBAND) * y) for x, y in targets]
            if band:
                lines.append(self._line(index, 0, "entropy", _part(run.series("policy/entropy"), False)))
                lines.append(self._line(index, 1, "target", targets, band=band, smoothed=False))
        chart = self._chart("entropy-band", "Entropy and its target", "nats/token", _drawable(lines))
        return self._figure(
            chart,
            "The target is a share of the run's own early entropy (guard.entropy_target); inside the band a controller "
            "holds still. Without an actuator this only shows where entropy has gone.",
            ("entropy", "target"),
            wide=True,
        )

    def coverage(self) -> Html | None:
        """Draw success, pass@1 and pass@k on one axis: does the policy get better, or only narrower?"""
        keys = (
            ("reward/success", "training success"),
            ("panel/pass@1", "panel pass@1"),
            ("panel/pass@k", "panel pass@k"),
        )
        lines = [
            self._line(index, number, name, _part(run.series(key), False), dots=key.startswith("panel/"))
            for index, run in enumerate(self.runs)
            if run.series("panel/pass@k")
            for number, (key, name) in enumerate(keys)
        ]
        chart = self._chart("coverage", "Success against coverage", "fraction", _drawable(lines), bounds=(0.0, 1.0))
        return self._figure(
            chart,
            "Pass@1 and pass@k on the guard's fixed panel. If pass@1 rises and pass@k falls, the policy gives up right "
            "answers it used to find.",
            tuple(name for _, name in keys),
            wide=True,
        )

    def panel(self, panel: ChartPanel, small: bool = False) -> Html | None:
        """Draw one declared panel; ``None`` where no run logged any of it."""
        lines = [
            self._line(index, number, name, _part(run.series(key), panel.warm_start), dots=key.startswith("eval/"))
            for index, run in enumerate(self.runs)
            for number, (key, name) in enumerate(zip(panel.keys, panel.names or (panel.title,), strict=True))
        ]
        chart = self._chart(
            panel.keys[0].replace("/", "-").replace("@", "-"),
            panel.title,
            panel.unit,
            _drawable(lines),
            bounds=panel.bounds,
            reference=panel.level(self.runs[0]),
            may_log=panel.may_log,
            max_points=self._budget(small),
        )
        return self._figure(chart, f"{panel.meaning} {panel.reading}", panel.names)

    def _chart(self, identifier: str, title: str, unit: str, series: Sequence[Series], **how: Any) -> Chart:
        """Return a chart over training."""
        return Chart(identifier, title, unit, series, x_name=self._axis.name, **how)

    def _budget(self, small: bool) -> int:
        return max(100, (160 if small else 360) // len(self.runs))

    def _line(
        self, index: int, number: int, name: str, points: Sequence[tuple[float, float | None]], **how: Any
    ) -> Series:
        run = self.runs[index]
        label = f"{run.label}: {name}" if self.several else name
        colour, dash = (index, number) if self.several else (number, 0)
        place = self._axis.places[index]
        placed = [(x, y) for step, y in points if (x := place(step)) is not None]
        band = [(x, *ends) for step, *ends in how.pop("band", ()) if (x := place(step)) is not None]
        return Series(label, placed, colour, dash, band, run=index, **how)

    def _curve(self, index: int, before: bool, name: str, curve: Sequence[tuple[int, Estimate]], colour: int) -> Series:
        points = [(float(k), estimate.value) for k, estimate in curve]
        band = [(float(k), estimate.low, estimate.high) for k, estimate in curve]
        label = f"{self.runs[index].label}: {name}" if self.several else name
        return Series(label, points, index if self.several else colour, int(before), band, dots=True, run=index)

    def _figure(
        self,
        chart: Chart,
        note: str,
        names: tuple[str, ...],
        colours: tuple[int, ...] = (0, 1, 2, 3),
        wide: bool = False,
    ) -> Html | None:
        if chart.is_empty:
            return None
        self.hover[chart.identifier] = chart.hover_data()
        drawn = {line.label.removeprefix(f"{self.runs[line.run].label}: ") for line in chart.series}
        keys = [
            (name, f"c{colours[number] + 1} d0" if not self.several else f"plain d{number}")
            for number, name in enumerate(names)
            if name in drawn and len(names) > 1
        ]
        if chart.reference:
            level, name = chart.reference
            where = "" if chart.shows_reference else ", outside this chart"
            keys.append((f"{name} ({format_value(level, chart.unit)}{where})", "plain reference"))
        unit = "" if chart.unit == "fraction" or chart.unit in chart.title.lower() else chart.unit
        unit = ", ".join(part for part in (unit, "log scale" * chart.y_scale.log) if part)
        return fill("figure.html", chart=chart, unit=unit, trend=self._trend(chart), keys=keys, note=note, wide=wide)

    def _trend(self, chart: Chart) -> str:
        """Say where the line came from and where it went, if there is only one."""
        both = ends(chart.series[0].points) if len(chart.series) == 1 and chart.x_name == self._axis.name else None
        if both is None:
            return ""
        first, last = (format_value(value, chart.unit) for value in both)
        return f"{first} → {last}" if first != last else f"{last} at both ends"


def _part(points: Sequence[tuple[float, float | None]], warm_start: bool) -> list[tuple[float, float | None]]:
    """Return the steps of the warm start or of training: on one axis, the longer would squeeze the other."""
    return [(step, value) for step, value in points if (step <= 0 if warm_start else step >= 0)]


def _drawable(lines: Sequence[Series]) -> list[Series]:
    return [line for line in lines if any(y is not None for _, y in line.points)]

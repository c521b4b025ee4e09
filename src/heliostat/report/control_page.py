"""The page of a ``heliostat control`` run: each algorithm's final return, and its return against steps and seconds.

Left out: single seeds' curves, which stand in the folder's ``laps.jsonl``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_path
from heliostat.control.runs import PAGE, ControlRun, read_control
from heliostat.report.charts.chart import Chart, Series
from heliostat.report.charts.scales import format_value
from heliostat.report.html.frame import framed, write_page
from heliostat.report.html.markup import Html, fill
from heliostat.report.sections.tables import EstimateCell, flatten

READING = (
    "Return: interquartile mean over seeds of the last quarter of evaluations (the deterministic policy on an "
    "environment of its own), with its 95% bootstrap interval. CPU seconds leave evaluation out; an update is what "
    "happens between two rollouts, and algorithms differ in how much they put into one."
)


def write_control_page(folder: PathArg) -> Path:
    """Write ``control.html`` into a run folder of ``heliostat control``.

    Raises:
        ValueError: the folder is no such run, or holds no evaluation yet.
    """
    run = read_control(as_path(folder))
    if not run.evaluations:
        raise ValueError(f"{folder} holds no evaluation yet")
    return write_page(run.folder / PAGE, render(run))


def render(run: ControlRun) -> str:
    """Return the page's HTML."""
    charts = [
        _chart(run, "return-steps", "Return against environment steps", "step", "return", "step"),
        _chart(run, "return-seconds", "Return against CPU seconds", "cpu_s", "return", "CPU s"),
        _chart(run, "training", "Return of the training episodes", "step", "train_return", "step"),
    ]
    drawn = [chart for chart in charts if not chart.is_empty]
    main = fill(
        "control.html",
        heading=_heading(run),
        outcomes=_outcomes(run),
        reading=READING,
        figures=[_figure(chart) for chart in drawn],
        settings=_settings(run),
        versions=_versions(run),
    )
    hover = {chart.identifier: chart.hover_data() for chart in drawn}
    return framed(f"{run.about['env']} · control", main, ["results", "curves", "settings"], hover)


def _heading(run: ControlRun) -> Html:
    facts = {
        "Environment": run.about["env"],
        "Algorithms": ", ".join(algo.upper() for algo in run.algos),
        "Seeds": run.about["num_seeds"],
        "Steps": f"{run.about['num_steps']:,}",
    }
    return fill("heading.html", kind="Control", title=run.about["env"], facts=facts)


def _outcomes(run: ControlRun) -> list[dict[str, Any]]:
    rows = []
    for algo in run.algos:
        lasts = [seed[-1] for seed in run.of(algo)]
        updates = sum(row["num_updates"] for row in lasts) or 1.0
        cpu = sum(row["cpu_s"] for row in lasts) / len(lasts)
        rows.append(
            {
                "algo": algo.upper(),
                "final": EstimateCell.of(run.final(algo), format_value),
                "num_seeds": len(lasts),
                "steps_per_s": format_value(sum(row["step"] for row in lasts) / len(lasts) / max(cpu, 1e-9)),
                "update_ms": format_value(1e3 * sum(row["update_s"] for row in lasts) / updates),
                "cpu_s": format_value(cpu),
            }
        )
    return rows


def _chart(run: ControlRun, identifier: str, title: str, x: str, y: str, x_name: str) -> Chart:
    lines = []
    for index, algo in enumerate(run.algos):
        curve = run.curve(algo, x, y)
        lines.append(
            Series(
                algo.upper(),
                [(at, estimate.value) for at, estimate in curve],
                index,
                band=[(at, estimate.low, estimate.high) for at, estimate in curve],
                run=index,
                smoothed=False,
            )
        )
    return Chart(identifier, title, "return", lines, x_name=x_name)


def _figure(chart: Chart) -> Html:
    keys = [(line.label, line.css_class) for line in chart.series]
    note = "Interquartile mean over seeds with its 95% bootstrap interval."
    return fill("figure.html", chart=chart, unit=None, trend="", keys=keys, note=note, wide=True)


def _settings(run: ControlRun) -> Html:
    rows = [(key, str(value)) for key, value in flatten(run.about["settings"])]
    return fill("settings_grid.html", name="Settings", head=("Setting", "Value"), rows=rows)


def _versions(run: ControlRun) -> Html:
    rows = [(name, str(value)) for name, value in run.about["versions"].items()]
    return fill("grid.html", name="Versions", head=("Package", "Version"), rows=rows)

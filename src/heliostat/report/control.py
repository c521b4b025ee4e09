"""The page of a ``heliostat control`` run: what each algorithm ended with, and its return against steps and seconds.

Left out: single seeds' curves, which stand in the folder's ``laps.jsonl``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heliostat.control.runs import PAGE, ControlRun, read_control
from heliostat.report.charts import Chart, Series
from heliostat.report.frame import framed, write_page
from heliostat.report.markup import Child, Html, element
from heliostat.report.scales import format_value
from heliostat.report.tables import flatten, grid
from heliostat.statistics import Estimate


def write_control_page(folder: Path) -> Path:
    """Write ``control.html`` into a run folder of ``heliostat control``.

    Raises:
        ValueError: it is not such a folder, or holds no evaluation yet.
    """
    run = read_control(Path(folder))
    if not run.laps:
        raise ValueError(f"{folder} holds no evaluation yet")
    return write_page(run.folder / PAGE, render(run))


def render(run: ControlRun) -> str:
    """The page's HTML."""
    charts = [
        _chart(run, "return-steps", "Return against environment steps", "step", "return", "step"),
        _chart(run, "return-seconds", "Return against CPU seconds", "cpu_s", "return", "CPU s"),
        _chart(run, "training", "Return of the training episodes", "step", "train_return", "step"),
    ]
    drawn = [chart for chart in charts if not chart.is_empty]
    main = element(
        "main",
        _heading(run),
        element("section", element("h2", "What each ended with"), _outcomes(run), _reading(run), id="results"),
        element(
            "section",
            element("h2", "Curves"),
            element("div", [_figure(chart) for chart in drawn], class_="charts"),
            id="curves",
        ),
        element("section", element("h2", "Settings"), element("div", _settings(run), class_="card"), id="settings"),
    )
    hover = {chart.identifier: chart.hover_data() for chart in drawn}
    return framed(f"{run.about['env']} · control", main, ["results", "curves", "settings"], hover)


def _heading(run: ControlRun) -> Html:
    facts = {
        "Environment": run.about["env"],
        "Algorithms": ", ".join(algo.upper() for algo in run.algos),
        "Seeds": str(run.about["num_seeds"]),
        "Steps": f"{run.about['num_steps']:,}",
    }
    shown = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items()]
    return element(
        "header",
        element("p", "Control", class_="eyebrow"),
        element("h1", str(run.about["env"])),
        element("dl", shown, class_="facts-list"),
    )


def _outcomes(run: ControlRun) -> Html:
    rows: list[Sequence[Child]] = []
    for index, algo in enumerate(run.algos):
        lasts = [seed[-1] for seed in run.of(algo)]
        updates = sum(row["num_updates"] for row in lasts) or 1.0
        cpu = sum(row["cpu_s"] for row in lasts) / len(lasts)
        rows.append(
            (
                [element("span", class_=f"key c{index % 6 + 1}"), algo.upper()],
                _with_interval(run.final(algo)),
                str(len(lasts)),
                format_value(sum(row["step"] for row in lasts) / len(lasts) / max(cpu, 1e-9)),
                format_value(1e3 * sum(row["update_s"] for row in lasts) / updates),
                format_value(cpu),
            )
        )
    head = ("Algorithm", "Return", "Seeds", "Steps per CPU second", "CPU ms per update", "CPU seconds")
    return element("div", grid("Results", head, rows), class_="card")


def _reading(run: ControlRun) -> Html:
    return element(
        "p",
        "Return: interquartile mean over seeds of the last quarter of evaluations (the deterministic policy on an "
        "environment of its own), with its 95% bootstrap interval. CPU seconds leave evaluation out; an update is what "
        "happens between two rollouts, and algorithms differ in how much they put into one.",
        class_="note",
    )


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
    keys = []
    for line in chart.series:
        sample = element("line", x1="1", x2="21", y1="6", y2="6")
        mark = element("svg", sample, class_=f"sample {line.css_class}", width="22", height="12", aria_hidden="true")
        keys.append(element("li", mark, line.label))
    plot = element("div", chart.svg(), class_="plot", tabindex=0, role="img", aria_label=chart.description(),
                   data_chart=chart.identifier)  # fmt: skip
    return element(
        "figure",
        element("figcaption", element("h3", chart.title)),
        element("ul", keys, class_="legend"),
        plot,
        element("p", "Interquartile mean over seeds with its 95% bootstrap interval.", class_="note"),
        class_="chart card wide",
        id=f"chart-{chart.identifier}",
    )


def _settings(run: ControlRun) -> list[Html]:
    rows = [(element("code", key), str(value)) for key, value in flatten(run.about["settings"])]
    packages = [(name, str(value)) for name, value in run.about["versions"].items()]
    return [
        grid("Settings", ("Setting", "Value"), rows),
        grid("Versions", ("Package", "Version"), packages),
    ]


def _with_interval(estimate: Estimate) -> list[Child]:
    low, high = format_value(estimate.low), format_value(estimate.high)
    return [format_value(estimate.value), element("small", f"{low} to {high}")]

"""The whole page of one run or several: its sections in their order.

Left out: the sections themselves (``sections``), and the frame around them (``html.frame``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_path, paths
from heliostat.report.charts.axes import AXES
from heliostat.report.charts.figures import Figures
from heliostat.report.html.frame import framed, write_page
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.read import Run, read_runs
from heliostat.report.sections.page_sections import (
    audit_section,
    chart_sections,
    events_section,
    findings_section,
    missing_section,
    settings_section,
    transcripts_section,
    wall_section,
)
from heliostat.report.sections.summary import cards, heading, verdict_section
from heliostat.report.sections.verdict import judge


def write_report(run_dirs: PathArg | Iterable[PathArg], output: PathArg | None = None, by: str = "step") -> Path:
    """Write one self-contained HTML page about one or several runs.

    Args:
        run_dirs: a run folder, or several, which are overlaid in this order.
        output: file to write, or a folder to write ``report.html`` into; ``None``: ``report.html`` in the first run.
        by: ``step`` or ``flops``, the horizontal axis of charts over training.

    Returns:
        The file that was written. An existing file is replaced whole, or not at all.

    Raises:
        ValueError: no folder was given, or one of them is not a run folder, or holds no FLOPs to draw by.
    """
    folders = [as_path(folder) for folder in paths(run_dirs)]
    runs = read_runs(folders)
    target = folders[0] if output is None else as_path(output)
    if target.is_dir():
        target = target / "report.html"
    return write_page(target, render(runs, by))


@dataclass(frozen=True, slots=True)
class Content:
    """A page without its frame.

    Attributes:
        anchors: sections that the navigation links to.
        hover: by chart, the data of its hover values.
    """

    title: str
    main: Html
    anchors: Sequence[str]
    hover: Mapping[str, Any]


def render(runs: Sequence[Run], by: str = "step") -> str:
    """Return the page's HTML."""
    content = content_of(runs, by)
    return framed(content.title, content.main, content.anchors, content.hover)


def content_of(runs: Sequence[Run], by: str = "step") -> Content:
    """Write all sections of the page."""
    verdicts = [judge(run) for run in runs]
    figures = Figures(runs, AXES[by](runs))
    sections = [
        *chart_sections(runs, figures),
        events_section(runs),
        audit_section(runs),
        wall_section(runs),
        transcripts_section(runs),
        settings_section(runs),
    ]
    present = [section for section in sections if section]
    parts = [
        heading(runs),
        findings_section(runs),
        verdict_section(runs, verdicts),
        missing_section(runs),
        cards(runs[0], verdicts[0]) if len(runs) == 1 else fill("run_keys.html", runs=runs),
        *(section.body for section in present),
    ]
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    main = fill("main.html", parts=parts)
    return Content(title, main, [part.anchor for part in present if part.anchor], figures.hover)

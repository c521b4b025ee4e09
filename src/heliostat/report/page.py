"""The whole page: sections in a frame with its own style and script inline, written in one piece.

A content policy in the page forbids every request and every script but the page's own, which is named by its hash: a
transcript that found a way past the escaping could still not run. Left out: what the sections say.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import heliostat
from heliostat.report.axes import AXES
from heliostat.report.figures import Figures
from heliostat.report.markup import Html, data_script, element
from heliostat.report.read import Run, read_runs
from heliostat.report.sections import (
    chart_sections,
    events_section,
    missing_section,
    settings_section,
    transcripts_section,
    wall_section,
)
from heliostat.report.summary import cards, heading, verdict_section
from heliostat.report.verdict import judge

LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><circle cx="24" cy="7" r="4.5" class="sun"/>'
    '<path d="M20.5 10.5 12 19M12 19 5.5 6" class="ray"/><path d="M5 15.5 19.5 22.5" class="mirror"/>'
    '<path d="M12 20.5V29M7 29h10" class="stand"/></svg>'
)


def write_report(run_dirs: Sequence[Path], output: Path | None = None, by: str = "step") -> Path:
    """Write one self-contained HTML page about one or several runs.

    Args:
        run_dirs: run folders; several are overlaid, in this order.
        output: file to write, or a folder to write ``report.html`` into; ``None``: ``report.html`` in the first run.
        by: ``step`` or ``flops``: what charts over training are drawn against.

    Returns:
        The file that was written. An existing file is replaced whole, or not at all.

    Raises:
        ValueError: no folder was given, or one of them is not a run folder, or holds no FLOPs to draw by.
    """
    runs = read_runs([Path(folder) for folder in run_dirs])
    target = Path(run_dirs[0]) if output is None else Path(output)
    if target.is_dir():
        target = target / "report.html"
    page = render(runs, by)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def render(runs: Sequence[Run], by: str = "step") -> str:
    """The page's HTML."""
    folder = files("heliostat.report")
    style, script = (Html(folder.joinpath(name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    verdicts = [judge(run) for run in runs]
    figures = Figures(runs, AXES[by](runs))
    sections = [
        *chart_sections(runs, figures),
        events_section(runs),
        wall_section(runs),
        transcripts_section(runs),
        settings_section(runs),
    ]
    present = [section for section in sections if section]
    main = element(
        "main",
        heading(runs),
        verdict_section(runs, verdicts),
        missing_section(runs),
        cards(runs[0], verdicts[0]) if len(runs) == 1 else _run_keys(runs),
        [section.body for section in present],
    )
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title} · Heliostat"),
        element("style", style),
    )
    links = [element("a", part.anchor.capitalize(), href=f"#{part.anchor}") for part in present if part.anchor]
    top = element(
        "div",
        element("span", Html(LOGO), "Heliostat", class_="brand"),
        element("nav", links, aria_label="Sections"),
        element("button", "Theme", id="theme", type="button", hidden=True),
        class_="top",
    )
    foot = element(
        "footer", f"Written by Heliostat {heliostat.__version__}. This page is one file and makes no requests."
    )
    body = element("body", top, main, foot, data_script("figures", figures.hover), element("script", script))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _run_keys(runs: Sequence[Run]) -> Html:
    """The colours of the runs; with JavaScript, each key shows and hides its run in every figure."""
    keys = [
        element(
            "button",
            element("span", class_=f"key c{index % 6 + 1}"),
            run.label,
            type="button",
            data_run=index,
            aria_pressed="true",
        )
        for index, run in enumerate(runs)
    ]
    return element("nav", keys, class_="runs", aria_label="Runs shown in the figures")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"

"""The page's sections below its summary: missing files, findings, charts by question, transcripts, settings.

Each function takes runs and gives sections, or ``None`` where the runs hold nothing for one. Left out: the top of the
page (``summary``) and the order of everything (``page``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.report.charts.bars import stacked_bars
from heliostat.report.charts.figures import Figures
from heliostat.report.charts.panels import GROUPS, GUARD, LEARNING, SPEED, PanelGroup, remaining_panels
from heliostat.report.charts.scales import format_quantity, format_seconds
from heliostat.report.diagnosis.replay import absolute_findings
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.phases import flops, seconds
from heliostat.report.runs.read import Run
from heliostat.report.sections.events import timeline
from heliostat.report.sections.reward_audit import audit_cards
from heliostat.report.sections.tables import by_task, recipe_table, versions_table
from heliostat.report.sections.transcripts import transcript_section
from heliostat.report.sections.wall import wall


@dataclass(frozen=True, slots=True)
class Section:
    """Markup with the anchor that the navigation links to; an empty anchor is not linked."""

    anchor: str
    body: Html


def missing_section(runs: Sequence[Run]) -> Html | None:
    """Say which files the folders lack and what the page loses by it; ``None`` where nothing is missing."""
    notes = [f"{run.label}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    return fill("missing.html", notes=notes) if notes else None


def findings_section(runs: Sequence[Run]) -> Html | None:
    """List the findings that need no comparison, with advice; ``None`` where there are none."""
    found = [(run.label, finding) for run in runs for finding in absolute_findings(run)]
    return fill("findings.html", found=found, several=len(runs) > 1) if found else None


def chart_sections(runs: Sequence[Run], figures: Figures) -> list[Section]:
    """Draw one section per question, then all other logged metrics."""
    sections = [section for group in GROUPS if (section := _group(group, runs, figures))]
    rest = [drawn for panel in remaining_panels(runs) if (drawn := figures.panel(panel, small=True))]
    if rest:
        sections.append(Section("", fill("more_charts.html", figures=rest)))
    return sections


def transcripts_section(runs: Sequence[Run]) -> Section | None:
    """Write the transcripts of one run, or of each run behind its own heading."""
    limit = 8 if len(runs) == 1 else 4
    bodies = [(run.label, transcript_section(run, limit)) for run in runs]
    return _of_each_run("transcripts", "In the model's own words", "", bodies, first_is_open=True)


def events_section(runs: Sequence[Run]) -> Section | None:
    """Write the guard's findings and actions."""
    intro = (
        "Hollow marks were only said: in shadow mode the guard does not act. Each line names the statistic behind it."
    )
    return _of_each_run("events", "What the guard saw", intro, [(run.label, timeline(run)) for run in runs])


def audit_section(runs: Sequence[Run]) -> Section | None:
    """Write the findings of the audit of the reward before training."""
    intro = "Before training, the verifiers were paid right answers, and texts that solve nothing."
    return _of_each_run("audit", "Is the reward sound?", intro, [(run.label, audit_cards(run)) for run in runs])


def wall_section(runs: Sequence[Run]) -> Section | None:
    """Write the latest completions with their repetitions marked."""
    intro = "The latest evaluation's first completions. Marked words repeat what the same text has said before."
    return _of_each_run("wall", "Does it repeat itself?", intro, [(run.label, wall(run)) for run in runs])


def _of_each_run(
    anchor: str, title: str, intro: str, bodies: Sequence[tuple[str, Html | None]], first_is_open: bool = False
) -> Section | None:
    """Write a section with the body of a single run, or each run's behind its own heading."""
    present = [(label, body) for label, body in bodies if body]
    if not present:
        return None
    several = len(bodies) > 1
    body = fill(
        "section.html",
        anchor=anchor,
        title=title,
        intro=intro,
        bodies=present,
        several=several,
        first_is_open=first_is_open,
    )
    return Section(anchor, body)


def settings_section(runs: Sequence[Run]) -> Section:
    """Write the recipe of each run with its changes marked, then versions."""
    recipes = [(f"Recipe of {run.label}", recipe_table(run)) for run in runs]
    return Section(
        "settings", fill("settings.html", recipes=recipes, several=len(runs) > 1, versions=versions_table(runs))
    )


def _group(group: PanelGroup, runs: Sequence[Run], figures: Figures) -> Section | None:
    drawn = [figures.hero(), figures.pass_at_k()] if group is LEARNING else []
    if group is SPEED:
        drawn = [*_bars(runs)]
    if group is GUARD:
        drawn = [figures.entropy_band(), figures.coverage()]
    drawn += [figures.panel(panel) for panel in group.panels]
    present = [figure for figure in drawn if figure]
    if not present:
        return None
    tables = [table for run in runs if (table := by_task(run))] if group is LEARNING else []
    return Section(group.anchor, fill("charts.html", group=group, figures=present, tables=tables))


def _bars(runs: Sequence[Run]) -> list[Html]:
    times = [(run.label, seconds(run)) for run in runs]
    operations = [(run.label, flops(run)) for run in runs]
    drawn = []
    if any(parts for _, parts in times):
        note = "Wall time by phase. Rollout samples one token at a time, while an update sees all tokens at once."
        drawn.append(stacked_bars(times, "Time by phase", format_seconds, note))
    if any(parts for _, parts in operations):
        note = (
            "Floating-point operations by phase. A phase with a large share of time and a small share of operations is "
            "held up by memory or overhead, not by arithmetic."
        )
        drawn.append(stacked_bars(operations, "Compute by phase", lambda amount: format_quantity(amount, "FLOP"), note))
    return drawn

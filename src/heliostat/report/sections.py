"""The page's sections below its summary: what was missing, charts by question, transcripts, settings.

Each function takes runs and gives sections, or ``None`` where the runs hold nothing for one. Left out: the top of the
page (``summary``) and the frame around everything (``page``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.report.bars import stacked_bars
from heliostat.report.events import timeline
from heliostat.report.figures import Figures
from heliostat.report.markup import Html, element
from heliostat.report.panels import GROUPS, GUARD, LEARNING, SPEED, PanelGroup, remaining_panels
from heliostat.report.phases import flops, seconds
from heliostat.report.read import Run
from heliostat.report.replay import outright_findings
from heliostat.report.reward_audit import audit_cards
from heliostat.report.scales import format_quantity, format_seconds
from heliostat.report.tables import by_task, recipe_table, versions_table
from heliostat.report.transcripts import transcript_section
from heliostat.report.wall import wall


@dataclass(frozen=True, slots=True)
class Section:
    """Markup with the anchor that the navigation links to; an empty anchor is not linked."""

    anchor: str
    body: Html


def missing_section(runs: Sequence[Run]) -> Html | None:
    """What the folders lack, in the reader's words; ``None`` where nothing is missing."""
    notes = [f"{run.label}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    if not notes:
        return None
    return element(
        "section",
        element("h2", "What this page could not read"),
        element("ul", [element("li", note) for note in notes]),
        class_="missing card",
    )


def findings_section(runs: Sequence[Run]) -> Html | None:
    """What the runs say outright, with what to do; ``None`` where they say nothing."""
    found = [(run.label, finding) for run in runs for finding in outright_findings(run)]
    if not found:
        return None
    lines = [
        element(
            "li", element("strong", f"{label}: " if len(runs) > 1 else ""), f"{finding.sentence()}; {finding.advice}"
        )
        for label, finding in found
    ]
    return element(
        "section", element("h2", "What the run says first"), element("ul", lines), class_="missing card", id="findings"
    )


def chart_sections(runs: Sequence[Run], figures: Figures) -> list[Section]:
    """One section per question, then whatever else was logged."""
    sections = [section for group in GROUPS if (section := _group(group, runs, figures))]
    rest = [drawn for panel in remaining_panels(runs) if (drawn := figures.panel(panel, small=True))]
    if rest:
        summary = element("summary", f"Everything else that was logged ({len(rest)})")
        charts = element("div", rest, class_="charts")
        sections.append(Section("", element("section", element("details", summary, charts))))
    return sections


def transcripts_section(runs: Sequence[Run]) -> Section | None:
    """Transcripts of one run, or of each run behind its own heading."""
    limit = 8 if len(runs) == 1 else 4
    bodies = [(run.label, transcript_section(run, limit)) for run in runs]
    present = [(label, body) for label, body in bodies if body]
    if not present:
        return None
    parts = [body for _, body in present]
    if len(runs) > 1:
        parts = [
            element("details", element("summary", label), body, open=index == 0)
            for index, (label, body) in enumerate(present)
        ]
    return Section(
        "transcripts", element("section", element("h2", "In the model's own words"), parts, id="transcripts")
    )


def events_section(runs: Sequence[Run]) -> Section | None:
    """What the guard saw and did."""
    bodies = [(run.label, timeline(run)) for run in runs]
    parts = _of_each(bodies)
    intro = (
        "Hollow marks were only said: in shadow mode the guard does not act. Each line names the statistic behind it."
    )
    return Section("events", _titled("events", "What the guard saw", intro, parts)) if parts else None


def audit_section(runs: Sequence[Run]) -> Section | None:
    """What the audit of the reward found before training."""
    parts = _of_each([(run.label, audit_cards(run)) for run in runs])
    intro = "Before training, the verifiers were paid right answers, and texts that solve nothing."
    return Section("audit", _titled("audit", "Is the reward sound?", intro, parts)) if parts else None


def wall_section(runs: Sequence[Run]) -> Section | None:
    """The latest completions with their repetitions marked."""
    parts = _of_each([(run.label, wall(run)) for run in runs])
    intro = "The latest evaluation's first completions. Marked words repeat what the same text has said before."
    return Section("wall", _titled("wall", "Does it repeat itself?", intro, parts)) if parts else None


def _of_each(bodies: Sequence[tuple[str, Html | None]]) -> list[Html]:
    """The body of a single run, or each run's behind its own heading."""
    present = [(label, body) for label, body in bodies if body]
    if len(bodies) == 1:
        return [body for _, body in present]
    return [element("details", element("summary", label), body) for label, body in present]


def _titled(anchor: str, title: str, intro: str, parts: Sequence[Html]) -> Html:
    return element("section", element("h2", title), element("p", intro, class_="intro"), parts, id=anchor)


def settings_section(runs: Sequence[Run]) -> Section:
    """The recipe of each run with its changes marked, then versions."""
    recipes = [
        recipe_table(run)
        if len(runs) == 1
        else element("details", element("summary", f"Recipe of {run.label}"), recipe_table(run))
        for run in runs
    ]
    versions = versions_table(runs)
    body = element(
        "section",
        element("h2", "Recipe"),
        element("div", recipes, class_="card"),
        [element("h2", "Versions and machine"), element("div", versions, class_="card")] if versions else None,
        id="settings",
    )
    return Section("settings", body)


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
    tables = (
        [element("div", table, class_="card") for run in runs if (table := by_task(run))] if group is LEARNING else []
    )
    intro = element("p", group.intro, class_="intro") if group.intro else None
    charts = element("div", present, class_="charts")
    return Section(group.anchor, element("section", element("h2", group.title), intro, charts, tables, id=group.anchor))


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

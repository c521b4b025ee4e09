"""The state of a run in a few words: what it does, how far it is, what the guard said last, and its latest answers.

Left out: the page below it (``report.page``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heliostat.report.charts.scales import format_seconds, format_value
from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.glance import Glance
from heliostat.report.runs.read import finite
from heliostat.storage import read_last_rows

NUM_ANSWERS = 3
MAX_CHARACTERS = 600
WORDS = {
    "starting": "Starting: waiting for the first step",
    "running": "Running",
    "done": "Done",
    "interrupted": "Interrupted",
    "failed": "Failed",
    "ended by the guard": "Ended by the guard",
    "broken": "Broken",
}
SHOWN = {"λ̂": ("policy/lambda_hat", "{:+.4f}"), "reward": ("reward/mean", "{:.3f}"), "loss": ("loss/sft", "{:.3f}")}
"""Metrics of the last step in the strip, and their formats."""


def strip_of(run: Glance, page: str) -> Html:
    """Write the strip of a run.

    Args:
        page: version of the page below it.
    """
    return fill(
        "live.html",
        status=run.status,
        page=page,
        state=_state(run),
        facts=facts_of(run),
        part=_part(run),
        news=_news(run),
        answers=_answers(run.folder),
    )


def waiting_strip(text: str, page: str) -> Html:
    """Write the strip of a folder that holds no run, or none any more."""
    return fill("live.html", status="missing", page=page, state=text, facts={}, part=None, news=[], answers=[])


def facts_of(run: Glance) -> dict[str, str]:
    """Return the numbers of the strip by name."""
    facts = {"step": run.progress} if run.rows else {}
    if run.seconds_left:
        facts["time left"] = f"about {format_seconds(run.seconds_left)}"
    last = run.rows[-1] if run.rows else {}
    for name, (key, form) in SHOWN.items():
        if (value := finite(last.get(key))) is not None:
            facts[name] = form.format(value).replace("-0.0000", "+0.0000")
    for phase in ("before", "after"):
        if (estimate := run.held_out(phase)) is not None:
            facts[f"held-out {phase}"] = format_value(estimate.value, "fraction")
    return facts


def last_event(folder: Path) -> str:
    """Return the last sentence of the guard; empty where it said nothing."""
    rows = read_last_rows(folder / "events.jsonl", 1)
    return str(rows[0].get("text", "")) if rows else ""


def _state(run: Glance) -> str:
    if run.status == "running" and run.rows and run.num_steps and run.step >= run.num_steps:
        return "Running: evaluates and saves"
    return WORDS[run.status]


def _part(run: Glance) -> str | None:
    done, planned = run.warm_start or (max(run.step, 0), run.num_steps or 0)
    return f"{min(1.0, done / planned):.4f}" if planned and run.rows else None


def _news(run: Glance) -> list[str]:
    event = last_event(run.folder)
    return [line for line in (run.reason, f"Guard: {event}" if event else "") if line]


def _answers(folder: Path) -> list[dict[str, Any]]:
    rows = read_last_rows(folder / "transcripts.jsonl", NUM_ANSWERS)
    return [
        {
            "step": row.get("step"),
            "prompt": _shortened(row.get("prompt")),
            "completion": _shortened(row.get("completion")),
            "verdict": "solved" if row.get("success") else "not solved",
        }
        for row in rows
    ]


def _shortened(text: object) -> str:
    written = str(text)
    return written if len(written) <= MAX_CHARACTERS else written[:MAX_CHARACTERS] + " …"

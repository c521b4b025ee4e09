"""The guard's findings and actions, as a strip along the run's steps and as a list.

Left out: judging, which happened while the run ran (``monitors``) or happens again on request (``diagnosis``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.read import Run, finite

MAX_LISTED = 40
KINDS = {
    "note": ("c1", "noted"),
    "adjust": ("c3", "adjusted"),
    "freeze controllers": ("c4", "mismatch"),
    "rollback": ("c2", "alarm"),
    "withdrawn": ("c6", "withdrawn"),
    "went back": ("c2", "went back"),
    "stop": ("c2", "stopped"),
    "switched off": ("c6", "guard failed"),
}
"""Colour and name of each action."""


def timeline(run: Run) -> Html | None:
    """Draw the strip and the list of one run's events; ``None`` where the guard had nothing to say."""
    events = [event for event in run.events if finite(event.get("step")) is not None and event.get("text")]
    if not events:
        return None
    last = max([run.last_step, *(int(event["step"]) for event in events)], default=1) or 1
    shown = [_shown(event, last) for event in events]
    return fill("events.html", events=shown, listed=shown[-MAX_LISTED:], last_step=last)


def _shown(event: Mapping[str, Any], last: int) -> dict[str, Any]:
    css, name = _kind(event)
    place = f"{100 * max(0, int(event['step'])) / last:.2f}%"
    return {"css": css, "name": name, "text": str(event["text"]), "place": place, "taken": bool(event.get("taken"))}


def _kind(event: Mapping[str, Any]) -> tuple[str, str]:
    return KINDS.get(str(event.get("action")), ("c6", str(event.get("action"))))

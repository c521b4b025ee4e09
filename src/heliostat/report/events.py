"""What the guard saw and did, as a strip along the run's steps and as a list.

Left out: judging, which happened while the run ran (``monitors``) or happens again on request (``diagnosis``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heliostat.report.markup import Html, element
from heliostat.report.read import Run, finite

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
    """The strip and the list of one run's events, or ``None`` where the guard had nothing to say."""
    events = [event for event in run.events if finite(event.get("step")) is not None and event.get("text")]
    if not events:
        return None
    shown = events[-MAX_LISTED:]
    rest = len(events) - len(shown)
    return element(
        "div",
        _strip(run, events),
        element("p", f"The last {len(shown)} of {len(events)} events.", class_="note") if rest else None,
        element("ol", [_item(event) for event in shown], class_="events"),
        class_="card",
    )


def _strip(run: Run, events: Sequence[Mapping[str, Any]]) -> Html:
    last = max([run.last_step, *(int(event["step"]) for event in events)], default=1) or 1
    dots = [
        element(
            "circle",
            element("title", str(event["text"])),
            cx=f"{100 * max(0, int(event['step'])) / last:.2f}%",
            cy="50%",
            r="6",
            class_=f"mark {_kind(event)[0]}" + ("" if event.get("taken") else " hollow"),
        )
        for event in events
    ]
    track = element("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track")
    label = f"{len(events)} events over {last} steps"
    ends = element("p", element("span", "step 0"), element("span", f"step {last}"), class_="axis")
    strip = element("svg", track, dots, width="100%", height="24", role="img", aria_label=label)
    return element("div", strip, ends, class_="strip intervals")


def _item(event: Mapping[str, Any]) -> Html:
    css, name = _kind(event)
    return element("li", element("span", class_=f"key {css}"), element("b", name), " ", str(event["text"]))


def _kind(event: Mapping[str, Any]) -> tuple[str, str]:
    return KINDS.get(str(event.get("action")), ("c6", str(event.get("action"))))

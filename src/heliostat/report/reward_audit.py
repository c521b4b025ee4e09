"""What the audit before training found: one card per task, with the right answers that were refused.

Left out: the audit itself (``tasks.auditing``), and its tricks one by one, which are in ``audit.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliostat.report.markup import Html, element
from heliostat.report.read import Run, dig, finite

MAX_REFUSED = 5


def audit_cards(run: Run) -> Html | None:
    """The cards of one run, or ``None`` where it was not audited."""
    tasks = run.audit.get("tasks")
    cards = [_card(task) for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []
    return element("div", cards) if cards else None


def _card(task: Mapping[str, Any]) -> Html:
    probes = dig(task, "probes", default=[])
    tricks = max(0, len(probes) - 1) if isinstance(probes, list) else 0
    paid = f"{_num(task, 'num_oracles')} right answers and {tricks} tricks were paid: {task.get('verdict', '')}."
    if left := _num(task, "num_left"):
        paid += f" Time was up before {left} more texts were judged."
    findings = _rows(task, "findings")
    refused = _rows(task, "refused")
    return element(
        "div",
        element("h3", str(task.get("task", ""))),
        element("p", paid),
        _list([f"{one.get('kind', '')}: {one.get('sentence', '')}" for one in findings]),
        element("p", f"Refused, {min(MAX_REFUSED, len(refused))} of {len(refused)}:", class_="note")
        if refused
        else None,
        _list([_refused(one) for one in refused[:MAX_REFUSED]]),
        class_="card",
    )


def _refused(one: Mapping[str, Any]) -> str:
    place = f" ({one['place']})" if one.get("place") else ""
    read = "nothing: the answer marker is missing" if one.get("read") is None else repr(one["read"])
    return f"{one.get('question', '')}{place} answer {one.get('answer', '')!r}, read {read}; {one.get('why', '')}"


def _rows(task: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = task.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _num(task: Mapping[str, Any], key: str) -> int:
    return int(finite(task.get(key)) or 0)


def _list(lines: list[str]) -> Html | None:
    return element("ul", [element("li", line) for line in lines]) if lines else None

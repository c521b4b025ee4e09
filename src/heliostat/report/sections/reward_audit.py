"""The findings of the audit before training: one card per environment and task, with refused right answers.

Left out: the audit itself (``tasks.reward_audit.audit``), and its tricks one by one, which are in ``audit.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliostat.report.html.markup import Html, fill
from heliostat.report.runs.read import Run, dig, finite

MAX_REFUSED = 5


def audit_cards(run: Run) -> Html | None:
    """Write the cards of one run; ``None`` where it was not audited."""
    cards = [_environment_card(one) for one in _rows(run.audit, "environments")]
    cards += [_card(task) for task in _rows(run.audit, "tasks")]
    return fill("audit.html", cards=cards) if cards else None


def _environment_card(audit: Mapping[str, Any]) -> dict[str, Any]:
    policies = _rows(audit, "policies")
    num = sum(_num(policy, "num_episodes") for policy in policies)
    slowest = finite(audit.get("slowest_ms")) or 0.0
    paid = (
        f"{len(policies)} policies played {num} episodes on {_num(audit, 'num_problems')} problems: "
        f"{audit.get('verdict', '')}. The slowest call took {slowest:.0f} ms."
    )
    if left := _num(audit, "num_cut"):
        paid += f" Time was up before {left} more episodes had ended."
    findings = [f"{one.get('kind', '')}: {one.get('sentence', '')}" for one in _rows(audit, "findings")]
    name = str(audit.get("environment", ""))
    return {"task": name, "paid": paid, "findings": findings, "refused": [], "num_refused": 0}


def _card(task: Mapping[str, Any]) -> dict[str, Any]:
    probes = dig(task, "probes", default=[])
    tricks = max(0, len(probes) - 1) if isinstance(probes, list) else 0
    paid = f"{_num(task, 'num_oracles')} right answers and {tricks} tricks were paid: {task.get('verdict', '')}."
    if left := _num(task, "num_left"):
        paid += f" Time was up before {left} more texts were judged."
    refused = _rows(task, "refused")
    return {
        "task": str(task.get("task", "")),
        "paid": paid,
        "findings": [f"{one.get('kind', '')}: {one.get('sentence', '')}" for one in _rows(task, "findings")],
        "refused": [_refused(one) for one in refused[:MAX_REFUSED]],
        "num_refused": len(refused),
    }


def _refused(one: Mapping[str, Any]) -> str:
    place = f" ({one['place']})" if one.get("place") else ""
    read = "nothing: the answer marker is missing" if one.get("read") is None else repr(one["read"])
    return f"{one.get('question', '')}{place} answer {one.get('answer', '')!r}, read {read}; {one.get('why', '')}"


def _rows(task: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = task.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _num(task: Mapping[str, Any], key: str) -> int:
    return int(finite(task.get(key)) or 0)

"""Seconds, FLOPs and tokens of a run by phase: from its summary, else added up from its log.

Left out: drawing (``bars``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heliostat.report.runs.read import Run, dig, finite, number

PHASES = {
    "warm_start": "Warm start",
    "rollout": "Rollout",
    "verify": "Verify",
    "update": "Update",
    "teacher": "Teacher",
    "judge": "Judge",
    "eval": "Evaluate",
    "other": "Everything else",
}
TIMED = ("rollout", "verify", "teacher", "update", "eval")


def seconds(run: Run) -> Mapping[str, float]:
    """Return wall time by phase; ``other`` is the rest of the total."""
    named = _stated(run, "seconds")
    total = named.pop("total", None)
    if not named:
        named = {phase: sum(y for _, y in run.series(f"time/{phase}") if y) for phase in TIMED}
        total = max((y for _, y in run.series("time/total") if y), default=None)
    rest = max(0.0, total - sum(named.values())) if total is not None else 0.0
    return _by_phase([*named.items(), ("other", rest)])


def flops(run: Run) -> Mapping[str, float]:
    """Return FLOPs by phase."""
    stated = _stated(run, "flops")
    if not stated:
        logged = {phase: _last(run, f"compute/{phase}_flops") for phase in ("rollout", "update", "teacher", "judge")}
        stated = {phase: amount for phase, amount in logged.items() if amount}
    stated.pop("total", None)
    return _by_phase([*stated.items()])


def tokens(run: Run) -> float | None:
    """Return the number of completion tokens sampled for training."""
    return number(run.summary, "tokens") or _last(run, "compute/tokens")


def _by_phase(amounts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return positive amounts in the order of ``PHASES``; a phase nobody declared here counts as everything else."""
    found = dict.fromkeys(PHASES, 0.0)
    for name, amount in amounts:
        found[name if name in PHASES else "other"] += amount
    return {phase: amount for phase, amount in found.items() if amount > 0}


def _last(run: Run, key: str) -> float | None:
    values = [y for _, y in run.series(key) if y is not None]
    return values[-1] if values else None


def _stated(run: Run, name: str) -> dict[str, float]:
    stated = dig(run.summary, name, default={})
    amounts = {key: finite(value) for key, value in stated.items()} if isinstance(stated, Mapping) else {}
    return {key: amount for key, amount in amounts.items() if amount is not None}

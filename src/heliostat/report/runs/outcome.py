"""The results of a run: pass@1 and pass@k before and after, and the interval of the change.

The change is paired: each problem's success rate after minus its own before, so that hard and easy problems cancel.
Left out: the estimators (``statistics``), sentences (``verdict``) and drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.report.runs.read import EvaluatedProblem, Run, dig, finite, number
from heliostat.statistics import Estimate, difference, pass_at_k, success_change, success_rate


@dataclass(frozen=True, slots=True)
class Outcome:
    """Held-out success before and after.

    Attributes:
        before, after: pass@1; ``None`` where it was never measured.
        change: after minus before; ``None`` unless both are known.
        num_problems: problems that both evaluations share, 0 where the change was not paired.
        last_step: the step that ``after`` was measured at.
        final: whether ``after`` is the evaluation at the end of the run, not the last one before it stopped.
    """

    before: Estimate | None
    after: Estimate | None
    change: Estimate | None
    num_problems: int
    last_step: int
    final: bool


def pass_curve(evaluations: Sequence[EvaluatedProblem]) -> list[tuple[int, Estimate]]:
    """Return mean pass@k over problems, with its interval, for every ``k`` that all of the problems allow."""
    largest = min((row.num_samples for row in evaluations), default=0)
    return [
        (k, success_rate([pass_at_k(row.num_samples, row.num_success, k) for row in evaluations]))
        for k in _spread(largest)
    ]


def outcome(run: Run) -> Outcome:
    """Return before, after and change of one run, from its summary where there is one and else from its evaluations."""
    first = [row for row in run.evaluations if row.phase == "before"]
    last = last_evaluation(run)
    final = number(run.summary, "after", "pass@1") is not None or any(row.phase == "after" for row in last)
    before = _from_summary(run, "before", first) or pass_at_1(first)
    after = _from_summary(run, "after", last) or pass_at_1(last)
    paired = _paired_changes(first, last)
    change = None
    if before and after:
        change = success_change(paired) if paired else difference(before, after)
    step = max((row.step for row in last), default=run.last_step)
    return Outcome(before, after, change, len(paired), step, final)


def last_evaluation(run: Run) -> list[EvaluatedProblem]:
    """Return the evaluation after training, or else the last one during it; the warm start does not count."""
    after = [row for row in run.evaluations if row.phase == "after"]
    during = [row for row in run.evaluations if row.phase == "during" and row.step > 0]
    latest = max((row.step for row in during), default=0)
    return after or [row for row in during if row.step == latest]


def against(run: Run, baseline: Run) -> Estimate | None:
    """Return pass@1 of one run's last evaluation minus another's, paired over the problems that both evaluated.

    **Limits** A run against itself gives exactly zero; runs without a common problem give ``None``.
    """
    changes = _paired_changes(last_evaluation(baseline), last_evaluation(run))
    if changes and run is baseline:
        return Estimate(0.0, 0.0, 0.0)
    return success_change(changes) if changes else None


def pass_at_1(rows: Sequence[EvaluatedProblem]) -> Estimate | None:
    """Return the mean success rate over problems with its interval; ``None`` without problems."""
    rates = [row.num_success / row.num_samples for row in rows]
    return success_rate(rates) if rates else None


def pass_at_1_by_step(run: Run) -> list[tuple[float, Estimate]]:
    """Return every evaluation's pass@1, as logged, or computed from its problems where the log misses it."""
    lows, highs = dict(run.series("eval/pass@1_low")), dict(run.series("eval/pass@1_high"))
    known: dict[float, Estimate] = {}
    for step, value in run.series("eval/pass@1"):
        if value is not None:
            low, high = lows.get(step), highs.get(step)
            known[step] = Estimate(value, value if low is None else low, value if high is None else high)
    for phase in ("during", "before", "after"):  # the later ones have more samples, and replace a check at their step
        rows = [row for row in run.evaluations if row.phase == phase]
        for step in {row.step for row in rows}:
            computed = pass_at_1([row for row in rows if row.step == step])
            if computed and (phase != "during" or step not in known):
                known[float(step)] = computed
    return sorted(known.items())


def summary_curve(run: Run, phase: str) -> list[tuple[int, Estimate]]:
    """Return pass@k as the summary states it, without intervals; for runs whose evaluations are lost."""
    stated = dig(run.summary, phase, "pass@k", default={})
    points = [(int(k), finite(value)) for k, value in stated.items() if str(k).isdigit()] if stated else []
    return sorted((k, Estimate(value, value, value)) for k, value in points if value is not None)


def _from_summary(run: Run, phase: str, rows: Sequence[EvaluatedProblem]) -> Estimate | None:
    """Return pass@1 as the summary states it; an interval without width is computed again from problems."""
    value = number(run.summary, phase, "pass@1")
    if value is None:
        return None
    interval = dig(run.summary, phase, "ci95", default=())
    ends = [finite(end) for end in interval] if isinstance(interval, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    measured = pass_at_1(rows) if low == high else None
    if measured is not None and math.isclose(measured.value, value, abs_tol=1e-9):
        return measured
    return Estimate(value, value if low is None else low, value if high is None else high)


def _paired_changes(first: Sequence[EvaluatedProblem], last: Sequence[EvaluatedProblem]) -> list[float]:
    rates = {(row.task, row.problem_id): row.num_success / row.num_samples for row in first}
    return [
        row.num_success / row.num_samples - rates[row.task, row.problem_id]
        for row in last
        if (row.task, row.problem_id) in rates
    ]


def _spread(largest: int) -> list[int]:
    """Return all of 1..8, then powers of two: enough points for a curve with any number of samples."""
    powers = [2**exponent for exponent in range(4, largest.bit_length())]
    return [*range(1, min(largest, 8) + 1), *powers, *([largest] if largest > 8 and largest not in powers else [])]

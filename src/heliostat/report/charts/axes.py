"""The horizontal axis of a page: training steps, or the FLOPs spent by each step.

Steps are equal for the optimizer and not for whoever pays: eight or sixty-four samples a prompt, and traces that had to
be collected first, are compared by what they took.

Left out: drawing (``charts``), and counting (``train.accounting.flop_ledger``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.report.runs.read import Run

Place = Callable[[float], float | None]
"""Where a step lies on the axis; ``None``: nowhere."""

_PREFIXES = {1e18: "EFLOP", 1e15: "PFLOP", 1e12: "TFLOP", 1e9: "GFLOP", 1e6: "MFLOP"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis for all runs of a page.

    Attributes:
        name: the quantity, with its unit.
        places: one for each run.
    """

    name: str
    places: Sequence[Place]


def step_axis(runs: Sequence[Run]) -> Axis:
    """Return the axis of training steps."""
    return Axis("step", [float] * len(runs))


def flops_axis(runs: Sequence[Run]) -> Axis:
    """Return the axis of ``compute/total_flops`` at each step, in the largest unit that leaves the end above 1.

    Step 0 lies where the first logged step began: after the collection and the warm start. Steps of the warm start and
    steps without a logged total lie nowhere.

    Raises:
        ValueError: a run has not logged what it spent.
    """
    spent = [_spent(run) for run in runs]
    most = max(max(totals.values()) for totals in spent)
    scale = next((scale for scale in _PREFIXES if most >= scale), min(_PREFIXES))
    places = [_place({step: float(f"{total / scale:.5g}") for step, total in totals.items()}) for totals in spent]
    return Axis(_PREFIXES[scale], places)


AXES: dict[str, Callable[[Sequence[Run]], Axis]] = {"step": step_axis, "flops": flops_axis}


def _place(totals: dict[float, float]) -> Place:
    return totals.get


def _spent(run: Run) -> dict[float, float]:
    keys = ("compute/total_flops", "compute/rollout_flops", "compute/update_flops")
    series = [{step: y for step, y in run.series(key) if y is not None and math.isfinite(y)} for key in keys]
    totals, rollout, update = series
    if not totals:
        raise ValueError(f"{run.label} has not logged compute/total_flops, so it cannot be drawn by FLOPs")
    first = min(totals)
    if first == 1:
        totals[0.0] = totals[first] - rollout.get(first, 0.0) - update.get(first, 0.0)
    return totals

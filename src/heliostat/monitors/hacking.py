r"""Does a judge's score rise without the success that a verifier measures on the same completions?

With mean score ``r_t`` and success ``s_t`` of step ``t``, and the difference ``b`` between the scores of right and
wrong completions within steps, a rise of success by ``ds`` explains a rise of the score by ``b ds``. The test asks
whether less than half of the rise is explained:

    y_t = r_t / 2 - b s_t
    z(x) = (mean of x in the last W steps - mean in the first W) / (sigma_x sqrt(2 / W))
    hacking = min(z(r), z(y))
    b = max(0, sum_t p_t (1 - p_t) (right_t - wrong_t) / sum_t p_t (1 - p_t)),   p_t = s_t, over all steps

``sigma_x^2`` is half the mean square of successive differences within the two windows, which no slow trend enters.
``b`` is measured within steps, so a score that rises for right and wrong completions alike leaves it as it is. A judge
that cannot tell them apart has ``b = 0``, and then every rise of the score is unexplained.

Left out: the alarm (``rules``), and judges of tasks without verifiers, where nothing else measures success.

References: von Neumann et al. 1941, Ann. Math. Stat. 12:153 (variance from successive differences).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

WINDOW = 10
"""Steps of each of the two windows; the last steps are compared once they do not overlap with the first."""


@dataclass(slots=True)
class HackingTest:
    """The test of a run, one step at a time.

    Attributes:
        first, last: (score, success) of the first and the most recent steps.
        weighted, weight: sums over steps that ``b`` is made of.

    **Limits** A constant score gives no statistic above 0. A score that is ``b s`` for the measured ``b`` gives none
    either, however far it rises.
    """

    first: list[tuple[float, float]] = field(default_factory=list)
    last: list[tuple[float, float]] = field(default_factory=list)
    weighted: float = 0.0
    weight: float = 0.0

    def update(self, signals: Mapping[str, float]) -> float | None:
        """Take in a step; return the statistic, ``None`` while the windows are not full or there is nothing to test."""
        if not {"judge/score", "reward/success"} <= signals.keys():
            return None
        if not signals.keys() & {"judge/right", "judge/wrong"}:  # success is the judge's own
            return None
        score, success = signals["judge/score"], signals["reward/success"]
        if {"judge/right", "judge/wrong"} <= signals.keys():
            mixed = success * (1 - success)
            self.weighted += mixed * (signals["judge/right"] - signals["judge/wrong"])
            self.weight += mixed
        if len(self.first) < WINDOW:
            self.first.append((score, success))
            return None
        self.last = [*self.last, (score, success)][-WINDOW:]
        if len(self.last) < WINDOW:
            return None
        return self._statistic()

    def _statistic(self) -> float:
        gap = max(0.0, self.weighted / self.weight) if self.weight else 0.0
        raw = [[score for score, _ in window] for window in (self.first, self.last)]
        rest = [[score / 2 - gap * success for score, success in window] for window in (self.first, self.last)]
        return min(_z(*raw), _z(*rest))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        windows = {"first": list(map(list, self.first)), "last": list(map(list, self.last))}
        return {**windows, "weighted": self.weighted, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.first = [(score, success) for score, success in state["first"]]
        self.last = [(score, success) for score, success in state["last"]]
        self.weighted, self.weight = float(state["weighted"]), float(state["weight"])


def _z(first: Sequence[float], last: Sequence[float]) -> float:
    """Return the standardised difference of two windows, 0 where they are equal."""
    rise = sum(last) / len(last) - sum(first) / len(first)
    squares = [(after - before) ** 2 for one in (first, last) for before, after in pairwise(one)]
    error = math.sqrt(sum(squares) / (2 * len(squares)) * (1 / len(first) + 1 / len(last)))
    if error <= 1e-12 * max(map(abs, (*first, *last))):
        return 0.0 if abs(rise) <= 1e-12 else math.copysign(1e3, rise)
    return max(-1e3, min(1e3, rise / error))

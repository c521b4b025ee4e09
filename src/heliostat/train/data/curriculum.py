"""The problems of each step: shuffled passes over the training set, or draws that favour unsolved problems.

Epochs are computed from the step alone. Draws remember each problem's success rate, the only state in a checkpoint.

Left out: prefixes (``prefixes``), and difficulty labels.

References: sampling in proportion to ``1 - success`` is Kimi k1.5's (2025), arXiv 2501.12599, section 2.3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from heliostat.types import Group, Problem

T = TypeVar("T")
MEMORY = 0.5
"""Weight of a problem's earlier success rate when a new group of it has been verified."""


@dataclass(frozen=True, slots=True)
class ShuffledEpochs(Generic[T]):
    """An endless stream of items in which every epoch visits each item once, in its own order."""

    items: Sequence[T]
    seed: int

    def next(self, step: int, num: int) -> list[T]:
        """Return items ``step * num`` to ``(step + 1) * num`` of the stream."""
        positions = range(step * num, (step + 1) * num)
        orders = {epoch: self._order(epoch) for epoch in {position // len(self.items) for position in positions}}
        return [self.items[orders[position // len(self.items)][position % len(self.items)]] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        return [int(index) for index in order]


@dataclass(slots=True)
class Curriculum:
    r"""Problems of a step, drawn without replacement with weight ``(1 - focus) + focus (1 - success)``.

    Args:
        focus: strength of the preference for unsolved problems, 0 to 1; a problem not sampled yet counts as unsolved.

    Limits:
        ``focus = 0``: shuffled passes over the training set, and no state.
    """

    problems: Sequence[Problem]
    seed: int
    focus: float = 0.0
    success: dict[str, float] = field(default_factory=dict)

    def next(self, step: int, num: int) -> list[Problem]:
        """Choose ``num`` problems for step ``step`` (from 0)."""
        if self.focus == 0 or num >= len(self.problems):
            return ShuffledEpochs(self.problems, self.seed).next(step, num)
        rates = np.asarray([self.success.get(problem.problem_id, 0.0) for problem in self.problems])
        weights = (1 - self.focus) + self.focus * (1 - rates) + 1e-6  # a fully solved set is drawn uniformly
        draws = np.random.default_rng([self.seed, step]).choice(
            len(self.problems), size=num, replace=False, p=weights / weights.sum()
        )
        return [self.problems[int(index)] for index in draws]

    def update(self, groups: Sequence[Group]) -> None:
        """Update success rates with verified groups, apart from prefixed ones, which were given part of a solution."""
        if self.focus == 0:
            return
        for group in groups:
            if group.prompt.cut:
                continue
            key = group.prompt.problem.problem_id
            rate = float(np.mean([verdict.success for verdict in group.verdicts]))
            self.success[key] = MEMORY * self.success.get(key, rate) + (1 - MEMORY) * rate

    def state_dict(self) -> dict[str, float]:
        """Return the success rates, for a checkpoint."""
        return dict(self.success)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the success rates of a checkpoint."""
        self.success = dict(state)

"""Which problems come next: a shuffled pass over the training set, again and again, computed from the step alone.

There is no cursor to save: step ``t`` always gets the same problems, so a resumed run meets them again.

Left out: difficulty, and prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Curriculum(Generic[T]):
    """An endless stream of items in which every epoch visits each item once, in its own order."""

    items: Sequence[T]
    seed: int

    def next(self, step: int, num: int) -> list[T]:
        """Items ``step * num`` to ``(step + 1) * num`` of the stream."""
        positions = range(step * num, (step + 1) * num)
        orders = {epoch: self._order(epoch) for epoch in {position // len(self.items) for position in positions}}
        return [self.items[orders[position // len(self.items)][position % len(self.items)]] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        return [int(index) for index in order]

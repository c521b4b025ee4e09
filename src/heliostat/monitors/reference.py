"""The baseline of a run: the median and spread of its own values, early ones or recent ones.

    spread = 1.4826 median |x - median|        the standard deviation, for a normal distribution

Absolute levels do not carry over from one model to the next (published entropy targets differ fiftyfold), so the guard
compares a run with itself.

Left out: thresholds (``detectors``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

MAD_TO_SIGMA = 1.4826


@dataclass(slots=True)
class Reference:
    """Median and spread of values ``skip .. skip + size``, or with ``rolling`` of the latest ``size`` values.

    Args:
        skip: values ignored at the start, while a run settles.
        least: values needed before the reference is ready; early references need all of theirs.
        floor: the spread is never taken smaller than this share of the median's size: a signal that was constant so
            far must not make the first change of its last digit an alarm.
        least_spread: nor smaller than this.

    **Limits** An early reference never changes once it has its values.
    """

    size: int
    skip: int = 0
    rolling: bool = False
    least: int = 20
    floor: float = 0.01
    least_spread: float = 1e-12
    values: list[float] = field(default_factory=list)
    seen: int = 0

    def centre(self) -> float | None:
        """Compute the median; ``None`` while there are too few values."""
        return median(self.values) if self.ready else None

    def spread(self) -> float:
        """Compute the robust standard deviation."""
        middle = median(self.values)
        deviation = MAD_TO_SIGMA * median(abs(value - middle) for value in self.values)
        return max(deviation, self.floor * abs(middle), self.least_spread)

    @property
    def ready(self) -> bool:
        """Whether there are enough values."""
        return len(self.values) >= (min(self.least, self.size) if self.rolling else self.size)

    def add(self, value: float) -> None:
        """Add one value."""
        self.seen += 1
        if self.seen <= self.skip or (not self.rolling and len(self.values) == self.size):
            return
        self.values = [*self.values, value][-self.size :]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"values": list(self.values), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.values, self.seen = list(state["values"]), int(state["seen"])

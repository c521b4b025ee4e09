"""A signal: a batch in, means that merge out, numbers from the merged means.

    measure(batch) -> moments       sums and counts, added over micro-batches and ranks
    finish(moments) -> numbers      ratios and covariances are taken once, at the end

Because only sums are kept, measuring a batch in pieces and merging gives the numbers of the whole batch (up to
rounding), and so does measuring on several ranks and merging with ``runtime.merge``. Each signal therefore returns the
same keys whatever the batch holds.

Left out: what is done about the numbers (``guard``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heliostat.types import Batch, Mean

Moments = Mapping[str, Mean]


class Signal(ABC):
    """Something that can be measured on a batch of verified groups."""

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, Mean]:
        """Sums and counts; the keys do not depend on the batch."""

    def finish(self, moments: Moments) -> dict[str, float]:
        """Numbers from merged moments; a number without data is left out. Default: each mean is a number."""
        return {key: mean.value for key, mean in moments.items() if mean.count}


def total(values: Iterable[float | None]) -> Mean:
    """The mean of what is there."""
    present = [value for value in values if value is not None]
    return Mean(float(sum(present)), len(present))


def merge(parts: Iterable[Moments]) -> dict[str, Mean]:
    """Add moments up, key by key."""
    merged: dict[str, Mean] = {}
    for part in parts:
        for key, mean in part.items():
            merged[key] = merged[key] + mean if key in merged else mean
    return merged


@dataclass(frozen=True)
class Monitor:
    """Several signals as one; moments of different signals may share a name and stay apart."""

    signals: Sequence[Signal]

    def measure(self, batch: Batch) -> dict[str, Mean]:
        """The moments of every signal."""
        return {
            f"{place}:{key}": mean
            for place, signal in enumerate(self.signals)
            for key, mean in signal.measure(batch).items()
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        """All numbers."""
        parts: list[dict[str, Mean]] = [{} for _ in self.signals]
        for key, mean in moments.items():
            place, _, name = key.partition(":")
            parts[int(place)][name] = mean
        numbers: dict[str, float] = {}
        for signal, part in zip(self.signals, parts, strict=True):
            numbers |= signal.finish(part)
        return numbers

"""A signal: a batch in, mergeable means out, metrics from the merged means.

    measure(batch) -> moments       sums and counts, added over micro-batches and ranks
    finish(moments) -> metrics      ratios and covariances are taken once, at the end

Because only sums are kept, measuring a batch in pieces and merging gives the metrics of the whole batch (up to
rounding), and so does measuring on several ranks and merging with ``runtime.merge``. Each signal therefore returns the
same keys for every batch.

Left out: judging the metrics (``guard``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heliostat.types import Batch, Mean, mean_values

Moments = Mapping[str, Mean]


class Signal(ABC):
    """A measurement on a batch of verified groups."""

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, Mean]:
        """Compute sums and counts; the keys do not depend on the batch."""

    def finish(self, moments: Moments) -> dict[str, float]:
        """Compute metrics from merged moments; a metric without data is left out. Default: each mean is a metric."""
        return mean_values(moments)


def total(values: Iterable[float | None]) -> Mean:
    """Average the values that are not ``None``."""
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
        """Compute the moments of every signal."""
        return {
            f"{place}:{key}": mean
            for place, signal in enumerate(self.signals)
            for key, mean in signal.measure(batch).items()
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        """Compute all metrics."""
        parts: list[dict[str, Mean]] = [{} for _ in self.signals]
        for key, mean in moments.items():
            place, _, name = key.partition(":")
            parts[int(place)][name] = mean
        numbers: dict[str, float] = {}
        for signal, part in zip(self.signals, parts, strict=True):
            numbers |= signal.finish(part)
        return numbers

"""How far an update phase moved the weights, relative to their size: ``||w_after - w_before|| / ||w_before||``.

Left out: directions, and single layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from heliostat.monitors.signal import Moments
from heliostat.types import Mean

MAX_ENTRIES = 2**17
"""Weights remembered between two looks: half a MiB, whatever the model's size."""


def _here(parameter: Tensor) -> Tensor:
    """What this rank holds of it; moments are added up over ranks."""
    held: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return held.detach()


class WeightProbe:
    """Remembers every ``k``-th entry of the weights, and says how far they have gone since.

    **Limits** A model with at most ``max_entries`` weights is measured exactly. Beyond, the ratio is that of an evenly
    spaced sample of entries.
    """

    def __init__(self, parameters: Sequence[Tensor], max_entries: int = MAX_ENTRIES) -> None:
        self.parameters = list(parameters)
        self.stride = max(1, -(-sum(p.numel() for p in self.parameters) // max_entries))
        self.remember()

    def remember(self) -> None:
        """Take the weights as they are for the start."""
        self._before = self._entries()

    def measure(self) -> dict[str, Mean]:
        """Squared distance from the remembered weights, and their squared size."""
        moved = (self._entries() - self._before).square().sum()
        return {
            "moved": Mean(float(moved), 1),
            "size": Mean(float(self._before.square().sum()), 1),
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        """The ratio."""
        size = moments["size"].value
        return {"optim/update_ratio": float((moments["moved"].value / size) ** 0.5)} if size > 0 else {}

    def _entries(self) -> Tensor:
        pieces = [_here(p).reshape(-1)[:: self.stride].double() for p in self.parameters]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)

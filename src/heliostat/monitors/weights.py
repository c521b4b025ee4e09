"""The length of an update phase relative to the size of the weights: ``||w_after - w_before|| / ||w_before||``.

Left out: directions, and single layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from heliostat.monitors.signal import Moments
from heliostat.types import Mean

MAX_ENTRIES = 2**17
"""Weights kept between two measurements: half a MiB for any size of model."""


def _here(parameter: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return this rank's part of a parameter; moments are added up over ranks."""
    held: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return held.detach()


class WeightProbe:
    """A probe that keeps every ``k``-th entry of the weights, and measures their distance from it.

    **Limits** A model with at most ``max_entries`` weights is measured exactly. Beyond, the ratio is that of an evenly
    spaced sample of entries.
    """

    def __init__(self, parameters: Sequence[Float[Tensor, ...]], max_entries: int = MAX_ENTRIES) -> None:
        self.parameters = list(parameters)
        self.stride = max(1, -(-sum(p.numel() for p in self.parameters) // max_entries))
        self.remember()

    def remember(self) -> None:
        """Keep the current weights as the start."""
        self.start = self._entries()

    def measure(self) -> dict[str, Mean]:
        """Compute the squared distance from the kept weights, and their squared size."""
        moved = (self._entries() - self.start).square().sum()
        return {
            "moved": Mean(float(moved), 1),
            "size": Mean(float(self.start.square().sum()), 1),
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        """Compute the ratio."""
        size = moments["size"].value
        return {"optim/update_ratio": float((moments["moved"].value / size) ** 0.5)} if size > 0 else {}

    def _entries(self) -> Float[Tensor, " entry"]:
        pieces = [_here(p).reshape(-1)[:: self.stride].double() for p in self.parameters]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)

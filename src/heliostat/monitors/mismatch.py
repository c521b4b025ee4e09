r"""Sampler against trainer: the divergence between their probabilities of the same tokens.

With ``delta = logp_train - logp_gen`` on tokens drawn by the sampler, and ``Delta`` its sum over a sequence:

    k1    = -mean delta                       k3 = mean(e^delta - delta - 1) >= 0      both estimate KL(gen || train)
    chi^2 = mean (e^delta - 1)^2 >= 0         per token; per sequence with Delta
    ESS   = (mean w)^2 / mean w^2,            w = e^Delta: the share of the batch that importance weights leave

Left out: the largest gap on one token (``policy/sampler_gap``), and remedies.

References: Schulman 2020, "Approximating KL divergence" (k1, k3); Kish 1965 (effective sample size).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heliostat.monitors.signal import Moments
from heliostat.types import Mean

MAX_LOG_WEIGHT = 30.0
"""A weight of e^30 is decisive, and its square still fits a float64 sum."""

_MEANS = ("mismatch/k1", "mismatch/k3", "mismatch/chi2_token", "mismatch/chi2_sequence")
_MOMENTS = (*_MEANS, "weight", "weight2")


@dataclass(frozen=True)
class Mismatch:
    """Moments of the gap between sampler and trainer, added up over micro-batches and ranks.

    **Limits** Equal log-probabilities: k1, k3 and chi-square are 0 and the effective sample share is 1.
    """

    def measure(
        self,
        logp_train: Float[Tensor, " token"],
        logp_gen: Float[Tensor, " token"],
        sequence: Int[Tensor, " token"],
        num_sequences: int,
    ) -> dict[str, Mean]:
        """Compute the moments of one micro-batch."""
        delta = (logp_train.detach() - logp_gen).double()
        summed = torch.zeros(num_sequences, dtype=torch.float64, device=delta.device).index_add(0, sequence, delta)
        ratio = delta.clamp(max=MAX_LOG_WEIGHT).exp()
        weight = summed.clamp(max=MAX_LOG_WEIGHT).exp()
        sums = torch.stack(
            [
                *(-delta.sum(), (ratio - delta - 1).sum(), (ratio - 1).square().sum()),
                *((weight - 1).square().sum(), weight.sum(), weight.square().sum()),
            ]
        ).tolist()
        counts = (delta.numel(),) * 3 + (num_sequences,) * 3
        return {name: Mean(value, count) for name, value, count in zip(_MOMENTS, sums, counts, strict=True)}

    def empty(self) -> dict[str, Mean]:
        """Return the moments of an empty batch."""
        return {name: Mean(0.0, 0) for name in _MOMENTS}

    def finish(self, moments: Moments) -> dict[str, float]:
        """Compute the metrics; there are none if no token was compared."""
        if not moments["mismatch/k1"].count:
            return {}
        weight, square = moments["weight"].value, moments["weight2"].value
        return {
            **{name: moments[name].value for name in _MEANS},
            "mismatch/ess": weight**2 / square if square > 0 else 0.0,
        }

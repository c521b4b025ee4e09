"""Covariance clipping around any objective: tokens whose update lowers entropy most get no gradient.

    cov_t = (A - mean A) (logp_gen_t - mean logp_gen)          clipped where cov_t is above the batch's threshold

The means and the threshold are those of the whole step, from the sampler's log-probabilities, so that no cut into
micro-batches changes which tokens are clipped.

Left out: choosing how many tokens to clip (the guard's actuator does).

References: Cui et al. 2025, arXiv 2505.22617 (Clip-Cov; there a random part of the tokens in a range is clipped, here
the top share, so that nothing is random).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heliostat.objectives.contract import Objective, Terms
from heliostat.types import Batch, LossOutput, Mean, TokenBatch


@dataclass(frozen=True, kw_only=True)
class CovarianceClip(Objective):
    """``inner`` without the gradient of tokens whose covariance exceeds ``threshold``.

    **Limits** An infinite threshold: ``inner``. A threshold below every covariance: no gradient at all.
    """

    name: ClassVar[str] = "covariance-clip"
    inner: Objective
    mean_advantage: float
    mean_logp: float
    threshold: float

    @classmethod
    def of_batch(cls, inner: Objective, batch: Batch, share: float) -> CovarianceClip:
        """Clip the ``share`` of the batch's tokens with the largest covariance (ties stay unclipped)."""
        completions = [c for group in batch.groups for c in group.group.completions]
        advantages = [float(a) for group in batch.groups for a in group.advantages]
        logp = torch.cat([torch.from_numpy(c.logp_gen).double() for c in completions])
        lengths = torch.tensor([c.num_sampled for c in completions])
        advantage = torch.tensor(advantages, dtype=torch.float64).repeat_interleave(lengths)
        mean_advantage, mean_logp = float(advantage.mean()), float(logp.mean())
        covariance = (advantage - mean_advantage) * (logp - mean_logp)
        num_clipped = min(int(share * covariance.numel()), covariance.numel() - 1)
        threshold = float(covariance.sort(descending=True).values[num_clipped])
        return cls(inner=inner, mean_advantage=mean_advantage, mean_logp=mean_logp, threshold=threshold)

    @property
    def needs_reference(self) -> bool:
        return self.inner.needs_reference

    @property
    def needs_whole_groups(self) -> bool:
        return self.inner.needs_whole_groups

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return self.inner.advantages(rewards)

    def normalizer(self, num_tokens: Int[Tensor, " sequence"]) -> float:
        return self.inner.normalizer(num_tokens)

    def average(self, loss: Float[Tensor, " sequence"], tokens: TokenBatch, normalizer: float) -> Float[Tensor, ""]:
        return self.inner.average(loss, tokens, normalizer)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        return self.inner.can_drop_zero_advantage_groups(first_update)

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        clipped = self.clipped(tokens)
        return self.inner.terms(torch.where(clipped, logp_new.detach(), logp_new), tokens)

    def loss(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, normalizer: float) -> LossOutput:
        clipped = self.clipped(tokens)
        free = torch.where(clipped, logp_new.detach(), logp_new)
        output = self.inner.loss(free, tokens, normalizer)
        metrics = {**output.metrics, "loss/covariance_clipped": Mean(float(clipped.sum()), clipped.numel())}
        # 0 * logp keeps the graph alive where every token of a micro-batch is clipped.
        loss = output.loss + 0.0 * logp_new.sum()
        return LossOutput(loss, metrics)

    def clipped(self, tokens: TokenBatch) -> Bool[Tensor, " token"]:
        """Mark the tokens that lose their gradient."""
        advantage = tokens.advantage.double()[tokens.sequence]
        covariance = (advantage - self.mean_advantage) * (tokens.logp_gen.double() - self.mean_logp)
        return covariance > self.threshold

"""Policy gradients: each token's gain, reweighted for its sampler, minus a penalty to a frozen reference.

    loss_i = sum_t ( -u_t g_t + kl_ref k3_t )
    u_t = min(e^{logp_old - logp_gen}, truncated_is), or 1 when off: corrects for a sampler that is not the anchor
    k3_t = e^{d_t} - d_t - 1,  d_t = logp_ref - logp_new: Schulman's estimate of KL(new || ref)

Here: the members without a clipped ratio (REINFORCE, RLOO, CISPO, DPPO). Those with one are in ``clipped``, and DRPO's
penalty is in ``probability_penalty``.

Left out: critics, and token-level credit; every token of a sequence has the same advantage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heliostat.objectives.baselines import ADVANTAGES, Baseline
from heliostat.objectives.contract import Objective, Terms, require_finite, require_nonnegative, require_positive
from heliostat.objectives.lengths import LengthNormalization
from heliostat.types import TokenBatch


class Gain(NamedTuple):
    """The contribution of each token, to be maximised, and whether a clip removed its gradient."""

    value: Float[Tensor, " token"]
    clipped: Bool[Tensor, " token"] | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective, ABC):
    """Advantage-weighted likelihood, with the options every member shares.

    Attributes:
        baseline: of the advantage.
        truncated_is: cap of the per-token importance weight ``old / gen``; 0: off. Corrects for sampler numerics and
            for stale rollouts; the weight is detached and multiplies the gain, not the reference penalty.
        kl_ref: weight of the penalty to the reference; 0: off, and no reference is needed.
    """

    baseline: Baseline = "mean"
    truncated_is: float = 0.0
    kl_ref: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_nonnegative("truncated_is", self.truncated_is)
        require_nonnegative("kl_ref", self.kl_ref)

    @property
    def needs_reference(self) -> bool:
        return self.kl_ref > 0

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return ADVANTAGES[self.baseline](rewards)

    @abstractmethod
    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        """Compute the contribution of each token, before weights and penalties."""

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        gain = self.gain(logp_new, tokens, tokens.advantage.to(logp_new.dtype)[tokens.sequence])
        token_loss = -gain.value
        if self.truncated_is > 0:
            require_finite("logp_gen", tokens.logp_gen, logp_new)
            weight = (tokens.logp_old - tokens.logp_gen).exp().clamp(max=self.truncated_is).to(logp_new.dtype)
            token_loss = weight * token_loss
        if tokens.logp_ref is not None and self.kl_ref > 0:
            gap = tokens.logp_ref - logp_new
            token_loss = token_loss + self.kl_ref * (gap.expm1() - gap)
        return Terms(tokens.sum_by_sequence(token_loss), gain.clipped)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        """Allow it unless the reference penalty acts on every sequence."""
        return self.kl_ref == 0


@dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyGradient):
    """REINFORCE with the group's mean as baseline: ``g_t = A logp_new_t``, coefficient A.

    No ratio: when a batch is reused, later updates are biased towards the samples of the old policy.

    **Limits**: the common gradient of ``pmd-mean``, ``dr-grpo``, ``cispo`` and ``dppo`` (mean baseline, equal length
    normalisation) while ``logp_new = logp_old``.
    References: Williams 1992, doi 10.1007/BF00992696.
    """

    name: ClassVar[str] = "reinforce"

    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        return Gain(advantage * logp_new)


@dataclass(frozen=True, kw_only=True)
class Rloo(Reinforce):
    """REINFORCE with the mean of the other completions as baseline.

    **Limits**: n / (n - 1) times ``reinforce`` in groups of n.
    References: Ahmadian et al. 2024, arXiv 2402.14740.
    """

    name: ClassVar[str] = "rloo"
    baseline: Baseline = "leave-one-out"


@dataclass(frozen=True, kw_only=True)
class Cispo(PolicyGradient):
    """CISPO: clip the importance weight instead of the gradient, ``g_t = sg[clip(r_t, 1-low, 1+high)] A logp_new_t``.

    No token loses its gradient, however far its ratio moved.

    Attributes:
        clip_low: the weight never falls below ``1 - clip_low``; 1: no lower bound, as in the paper.
        clip_high: the weight never exceeds ``1 + clip_high``; the paper tunes it without naming a value, ours is 4.

    **Limits**: ``clip_low -> 0`` and ``clip_high -> 0``: ``reinforce``. No clip active: the importance-weighted policy
    gradient, as ``grpo`` inside its interval.
    References: MiniMax 2025, arXiv 2506.13585.
    """

    name: ClassVar[str] = "cispo"
    length_normalization: LengthNormalization = "token"
    baseline: Baseline = "standardized"
    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip_range(self.clip_low, self.clip_high)

    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        ratio = (logp_new.detach() - tokens.logp_old).exp()
        pull = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high) * advantage
        return Gain(pull * logp_new)


@dataclass(frozen=True, kw_only=True)
class Dppo(PolicyGradient):
    """DPPO's binary total variation: drop a token whose *probability* already moved far enough in A's direction.

    ``g_t = sg[min(r_t, max_ratio)] A logp_new_t``, unless ``p_new - p_old > max_increase`` with ``A > 0``, or
    ``p_new - p_old < -max_decrease`` with ``A < 0``. Unlike a ratio clip it leaves rare tokens free and binds common
    ones. The paper measures from the sampler's policy; here, as everywhere, from ``old`` (``truncated_is`` corrects).

    Attributes:
        max_increase: largest rise in probability that is still encouraged.
        max_decrease: largest fall in probability that is still encouraged.
        max_ratio: cap of the importance weight.

    **Limits**: ``max_increase = max_decrease = 1``: nothing is masked; then, below the cap, the importance-weighted
    policy gradient.
    References: Qi et al. 2026, arXiv 2602.04879.
    """

    name: ClassVar[str] = "dppo"
    length_normalization: LengthNormalization = "token"
    baseline: Baseline = "standardized"
    max_increase: float = 0.2
    max_decrease: float = 0.2
    max_ratio: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("max_increase", self.max_increase)
        require_positive("max_decrease", self.max_decrease)
        require_positive("max_ratio", self.max_ratio)

    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        logp = logp_new.detach()
        ratio = (logp - tokens.logp_old).exp().clamp(max=self.max_ratio)
        moved = logp.exp() - tokens.logp_old.exp()
        masked = ((advantage > 0) & (moved > self.max_increase)) | ((advantage < 0) & (moved < -self.max_decrease))
        pull = torch.where(masked, 0.0, ratio * advantage)
        return Gain(pull * logp_new, masked)


def require_clip_range(clip_low: float, clip_high: float) -> None:
    """Refuse clip distances that are not positive; a ratio is never below 0, so ``clip_low`` ends at 1."""
    require_positive("clip_low", clip_low)
    require_positive("clip_high", clip_high)
    if clip_low > 1:
        raise ValueError(f"clip_low must be at most 1 (a ratio is never negative; 1: no lower clip), got {clip_low}")

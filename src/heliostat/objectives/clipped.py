"""The clipped-ratio family: ``g_t = min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A)``, coefficient r_t A or 0.

The gradient is removed where the ratio already left the interval in the direction that A asks for, and kept where it
left in the other: such a token is still pulled back. GRPO, Dr. GRPO, DAPO and GSPO are settings of this family.

Left out: DAPO's soft punishment of overlong answers (a reward) and its dynamic sampling (the data side).
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.objectives.baselines import Baseline
from heliostat.objectives.lengths import LengthNormalization
from heliostat.objectives.policy_gradient import Gain, PolicyGradient, require_clip_range
from heliostat.types import TokenBatch


@dataclass(frozen=True, kw_only=True)
class ClippedRatio(PolicyGradient, ABC):
    """Pessimistic clipped surrogate on a ratio that a member may redefine.

    Attributes:
        clip_low: distance of the lower clip from ratio 1.
        clip_high: distance of the upper clip from ratio 1.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip_range(self.clip_low, self.clip_high)

    def log_ratio(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Float[Tensor, " token"]:
        """Compute the logarithm of each token's ratio; its derivative in that token's ``logp_new`` is 1."""
        return logp_new - tokens.logp_old

    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        ratio = self.log_ratio(logp_new, tokens).exp()
        free = ratio * advantage
        value = torch.minimum(free, ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high) * advantage)
        return Gain(value, (free > value).detach())


@dataclass(frozen=True, kw_only=True)
class Grpo(ClippedRatio):
    """GRPO: standardised advantages, symmetric clip, mean over tokens and then over sequences.

    **Limits**: ``logp_new = logp_old``: the gradient of ``reinforce`` with the standardised baseline and
    ``length_normalization = "sequence"``. ``kl_ref > 0`` adds the reference penalty of the paper (there 0.04).
    References: Shao et al. 2024, arXiv 2402.03300.
    """

    name: ClassVar[str] = "grpo"
    length_normalization: LengthNormalization = "sequence"
    baseline: Baseline = "standardized"


@dataclass(frozen=True, kw_only=True)
class DrGrpo(ClippedRatio):
    """Dr. GRPO: GRPO without its two biases: no division by the reward's spread, none by the sequence's length.

    Set ``length_constant`` to the completion budget for the paper's scale; 1 sums tokens.

    **Limits**: ``logp_new = logp_old``: the gradient of ``reinforce`` over ``length_constant``.
    References: Liu et al. 2025, arXiv 2503.20783.
    """

    name: ClassVar[str] = "dr-grpo"
    length_normalization: LengthNormalization = "constant"


@dataclass(frozen=True, kw_only=True)
class Dapo(ClippedRatio):
    """DAPO's loss: a higher upper clip, and one mean over all tokens of the step.

    Its overlong reward shaping and its dynamic sampling are not part of the loss: the first is a reward, the second a
    choice of prompts.

    **Limits**: equal lengths and ``clip_high = clip_low``: ``grpo``.
    References: Yu et al. 2025, arXiv 2503.14476.
    """

    name: ClassVar[str] = "dapo"
    length_normalization: LengthNormalization = "token"
    baseline: Baseline = "standardized"
    clip_high: float = 0.28


@dataclass(frozen=True, kw_only=True)
class Gspo(ClippedRatio):
    """GSPO: one ratio per sequence, the geometric mean of its token ratios, ``(pi_new(y) / pi_old(y))^{1/|y|}``.

    Written in the paper's token form (GSPO-token): the value is the sequence's, the gradient passes through the token's
    own log-prob, so that per-token weights such as ``truncated_is`` stay per token.

    **Limits**: the gradient equals that of ``min(s_i A_i, clip(s_i) A_i)`` per sequence. Sequences of one token:
    ``grpo`` with the same clips.
    References: Zheng et al. 2025, arXiv 2507.18071.
    """

    name: ClassVar[str] = "gspo"
    length_normalization: LengthNormalization = "sequence"
    baseline: Baseline = "standardized"
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def log_ratio(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Float[Tensor, " token"]:
        total = tokens.sum_by_sequence(logp_new.detach() - tokens.logp_old)
        mean = total / tokens.num_tokens.clamp(min=1)
        return mean[tokens.sequence] + (logp_new - logp_new.detach())

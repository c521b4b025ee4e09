"""DRPO: a policy gradient whose penalty is a squared change of the sampled token's probability, weighed by ``|A|``.

Where ``dppo`` masks a token that moved too far, the penalty turns its gradient around.

Left out: the paper's ablations of the penalty (other divergences, no ``|A|``, plain SPO).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from heliostat.objectives.contract import require_positive
from heliostat.objectives.lengths import LengthNormalization
from heliostat.objectives.policy_gradient import Gain, PolicyGradient
from heliostat.types import TokenBatch


@dataclass(frozen=True, kw_only=True)
class Drpo(PolicyGradient):
    """DRPO: DPPO's trust region as a penalty, ``g_t = r_t A - |A| / (2 delta) p_old (r_t - 1)^2``.

    Coefficient ``w_t r_t A`` with ``w_t = 1 - sign(A (r_t - 1)) |p_new - p_old| / delta``: moving on in A's direction
    counts less and less, and backwards beyond ``delta``; moving back counts more. The paper measures from the sampler's
    policy; here, as everywhere, from ``old`` (``truncated_is`` corrects).

    Attributes:
        delta: the change of a token's probability at which its gain is largest. The authors' 12.5 is above any change
            that a probability can make, so that w stays within 8% of 1; ``dppo`` uses 0.2.

    **Limits**: ``delta`` -> infinity: the importance-weighted policy gradient without clip or mask. ``logp_new =
    logp_old``: ``reinforce``. ``p_new = p_old + sign(A) delta``: no gradient, at the boundary of ``dppo`` with
    ``max_increase = max_decrease = delta``. w always lies between ``1 - 1/delta`` and ``1 + 1/delta``.
    References: Yao et al. 2026, arXiv 2606.09821, equation 8, and github.com/Tencent-Hunyuan/UniRL (``_drpo_loss``,
    without its clamp of log-ratios at 20).
    """

    name: ClassVar[str] = "drpo"
    length_normalization: LengthNormalization = "constant"
    delta: float = 12.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("delta", self.delta)

    def gain(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, advantage: Float[Tensor, " token"]) -> Gain:
        excess = (logp_new - tokens.logp_old).expm1()
        penalty = advantage.abs() / (2.0 * self.delta) * tokens.logp_old.exp() * excess.square()
        return Gain(advantage * (excess + 1.0) - penalty)

"""Policy gradients kept near the anchor by an explicit penalty: the relatives of PMD-mean one would compare it with.

    log-ratio-decay   loss = -A log pi + decay/2 (log-ratio)^2
    kl-chi2           loss = -rho A + tau KL + tau lambda/2 chi^2
    kimi-k2.5         loss = -clip(r_t) A + tau (token log-ratio)^2

Left out: penalties to a frozen reference (``kl_ref`` of the policy-gradient family).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from heliostat.objectives.baselines import ADVANTAGES, Baseline
from heliostat.objectives.contract import Objective, Terms, require_nonnegative, require_positive
from heliostat.objectives.lengths import LengthNormalization
from heliostat.types import TokenBatch


@dataclass(frozen=True, kw_only=True)
class LogRatioDecay(Objective):
    """A policy gradient with a squared log-ratio penalty, on any advantage: ``coefficient = A - decay * log-ratio``.

    ``loss_i = -A_i sum_t logp_new_t + decay/2 s_i^2`` at sequence level, ``decay/2 sum_t (log-ratio_t)^2`` at token
    level.

    Attributes:
        decay: weight of the penalty, in reward units per nat.
        level: which log-ratio is penalised: that of the whole sequence, or each token's own.
        baseline: of the advantage.

    **Limits**: sequence level, mean baseline, ``decay = tau``: the gradient of ``pmd-mean`` exactly. ``decay = 0``:
    ``reinforce``. Token level: verl's ``dro``, ROLL's ``kimi15``. Sequences of one token: the levels agree.
    References: Kimi Team 2025, arXiv 2501.12599; Richemond et al. 2024, arXiv 2405.19107 (DRO).
    """

    name: ClassVar[str] = "log-ratio-decay"
    decay: float = 0.2
    level: Literal["sequence", "token"] = "sequence"
    baseline: Baseline = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_nonnegative("decay", self.decay)

    @property
    def regression_tau(self) -> float | None:
        """The decay at sequence level, where the gradient is that of a regression on ``A / decay``."""
        return self.decay if self.level == "sequence" and self.decay > 0 else None

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return ADVANTAGES[self.baseline](rewards)

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        advantage = tokens.advantage.to(logp_new.dtype)
        log_ratio = logp_new - tokens.logp_old
        if self.level == "sequence":
            total = tokens.sum_by_sequence(log_ratio)
            penalty = total.square()
        else:
            penalty = tokens.sum_by_sequence(log_ratio.square())
        loss = 0.5 * self.decay * penalty - advantage * tokens.sum_by_sequence(logp_new)
        return Terms(loss)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        return first_update or self.decay == 0


@dataclass(frozen=True, kw_only=True)
class KlChi2(Objective):
    """The mixed mirror step written out: maximise ``<pi, r> - tau KL(pi || old) - tau lambda/2 chi^2(pi || old)``.

    With ``rho = e^s`` per sequence, ``loss_i = -rho A + tau (rho s - rho + 1) + tau lambda/2 (rho - 1)^2`` and
    ``coefficient = rho (A - tau s - tau lambda (rho - 1))``. Both penalties carry the control variate that makes their
    gradient vanish at the anchor sample by sample; ``E rho = 1`` makes that free.

    Attributes:
        tau: weight of the KL divergence, in reward units.
        chi2_weight: lambda, the chi-square divergence's weight relative to tau.
        baseline: of the advantage.

    **Limits**: ``s = 0``: coefficient A, as ``pmd-mean``. ``chi2_weight`` equal to PMD-mean's own lambda: the same
    population optimum as ``pmd-mean``. ``chi2_weight = 0``: KL only, optimum ``rho ~ e^{r/tau}``. ``rho`` overflows
    float32 above ``s = 88`` nats; the loss is then infinite, and the trainer skips the step.
    References: Xu et al. 2026, arXiv 2602.05933 (reconstruction: its equivalent regulariser, used explicitly).
    """

    name: ClassVar[str] = "kl-chi2"
    tau: float = 0.2
    chi2_weight: float = 1.0
    baseline: Baseline = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tau", self.tau)
        require_nonnegative("chi2_weight", self.chi2_weight)

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return ADVANTAGES[self.baseline](rewards)

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        advantage = tokens.advantage.to(logp_new.dtype)
        log_ratio = tokens.sum_by_sequence(logp_new - tokens.logp_old)
        excess = log_ratio.expm1()
        ratio = excess + 1.0
        chi2 = 0.5 * self.tau * self.chi2_weight * excess.square()
        loss = ratio * (self.tau * (log_ratio - 1.0) - advantage) + self.tau + chi2
        return Terms(loss)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        return first_update


@dataclass(frozen=True, kw_only=True)
class KimiK25(Objective):
    """Kimi K2.5's token-level form: a policy gradient masked by the token's log-ratio, and a token-level penalty.

    ``loss_i = -sum_t clip(r_t, e^min, e^max) A_i + tau sum_t (log r_t)^2``; inside the interval the coefficient is
    ``r_t A_i - 2 tau log r_t``, outside it ``-2 tau log r_t``: the mask ignores the sign of A, and the penalty still
    pulls a masked token back. The report prints no interval and no tau; the defaults are ours.

    Attributes:
        tau: weight of the squared token log-ratio, in reward units.
        min_log_ratio: lower end of the interval (the report's alpha), nats.
        max_log_ratio: upper end (the report's beta), nats.

    **Limits**: ``log r = 0`` everywhere: ``reinforce``. An interval that contains every log-ratio and tau -> 0: the
    unclipped importance-weighted policy gradient. Outside the interval and tau -> 0: no gradient, whatever A's sign.
    References: Kimi Team 2026, arXiv 2602.02276, equation 1.
    """

    name: ClassVar[str] = "kimi-k2.5"
    length_normalization: LengthNormalization = "token"
    tau: float = 0.1
    min_log_ratio: float = -1.0
    max_log_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tau", self.tau)
        if not self.min_log_ratio < 0 < self.max_log_ratio:
            raise ValueError(
                "min_log_ratio must be below 0 and max_log_ratio above it, so that the unchanged policy lies inside; "
                f"got {self.min_log_ratio} and {self.max_log_ratio}"
            )

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return ADVANTAGES["mean"](rewards)

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        advantage = tokens.advantage.to(logp_new.dtype)[tokens.sequence]
        log_ratio = logp_new - tokens.logp_old
        gain = log_ratio.clamp(self.min_log_ratio, self.max_log_ratio).exp() * advantage
        loss = tokens.sum_by_sequence(self.tau * log_ratio.square() - gain)
        drift = log_ratio.detach()
        inside = (drift >= self.min_log_ratio) & (drift <= self.max_log_ratio)
        return Terms(loss, ~inside & (advantage != 0))

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        return first_update

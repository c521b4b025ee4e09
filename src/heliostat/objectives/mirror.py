"""Policy mirror descent by regression: fit each sequence's log-ratio to ``advantage / tau``.

    loss_i = tau/2 (A_i / tau - s_i)^2          s_i = sum_t (logp_new_t - logp_old_t)
    -d loss_i / d logp_new_t = A_i - tau s_i     its coefficient, for every token of sequence i

The policy at the start of the update phase (``old``) is the anchor. At ``s = 0`` the gradient is that of REINFORCE and
does not contain tau: with one update per batch tau is irrelevant. tau acts once ``tau |s|`` reaches ``|A|``. Objectives
of this family differ only in the baseline of A and in scale.

Left out: the population optimum of these losses (``theory``), and clips; nothing here bounds a ratio.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from heliostat.objectives.baselines import leave_one_out_advantage, mean_advantage, partition_advantage
from heliostat.objectives.contract import Objective, Terms, require_nonnegative, require_positive
from heliostat.objectives.lengths import LengthNormalization
from heliostat.types import TokenBatch


@dataclass(frozen=True, kw_only=True)
class SequenceSquare(Objective, ABC):
    """Squared distance of the sequence log-ratio from ``A / tau``, times ``scale``.

    Attributes:
        tau: temperature of the mirror step in reward units: the weight of staying near the anchor.
    """

    tau: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tau", self.tau)

    @property
    def scale(self) -> float:
        """Factor on loss and coefficient; 1 makes the gradient at the anchor free of tau."""
        return 1.0

    @property
    def regression_tau(self) -> float:
        return self.tau

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        log_ratio = tokens.sum_by_sequence(logp_new - tokens.logp_old)
        residual = tokens.advantage.to(logp_new.dtype) / self.tau - log_ratio
        loss = 0.5 * self.tau * self.scale * residual.square()
        return Terms(loss)

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        """Allow it only while ``s = 0``: afterwards ``-tau s`` pulls a zero-signal group back to the anchor."""
        return first_update


@dataclass(frozen=True, kw_only=True)
class PmdMean(SequenceSquare):
    """PMD-mean: regress the log-ratio on the mean-baselined reward, ``A_i = r_i - mean r``.

    ``loss_i = tau/2 ((r_i - mean r)/tau - s_i)^2``, coefficient ``r_i - mean r - tau s_i`` (Kimi k1.5's direction).

    Attributes:
        leave_one_out: leave a completion out of its own baseline.

    **Limits**: ``s = 0``: RLOO's gradient with ``leave_one_out``, (n-1)/n of it without, for every tau. tau -> 0:
    ``reinforce``. Any tau: the gradient of ``log-ratio-decay`` with ``decay = tau``. ``leave_one_out`` at tau regresses
    on the same targets as the full mean at ``tau (n-1)/n``. Population optimum: ``log rho + lambda rho = A/tau``
    (Lambert W), checked by minimising this loss on an enumerated policy.
    References: Xu, Lu, Yu, Zhao 2026, arXiv 2602.05933 (reconstruction: the paper's body was not available; scaled as
    in its public code OpenKimi); Kimi Team 2025, arXiv 2501.12599, section 2.3.2.
    """

    name: ClassVar[str] = "pmd-mean"
    leave_one_out: bool = False

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return leave_one_out_advantage(rewards) if self.leave_one_out else mean_advantage(rewards)


@dataclass(frozen=True, kw_only=True)
class KimiK2(PmdMean):
    """Kimi K2's square: ``loss_i = (r_i - mean r - tau s_i)^2``, coefficient ``2 tau (r_i - mean r - tau s_i)``.

    The same minimiser as ``pmd-mean``; the gradient is 2 tau times as long, which a scale-free optimizer ignores and a
    gradient clip, Adam's epsilon or plain SGD do not.

    **Limits**: 2 tau times ``pmd-mean``, in loss and coefficient; tau = 1/2: ``pmd-mean``.
    References: Kimi Team 2025, arXiv 2507.20534, section 3.2.3.
    """

    name: ClassVar[str] = "kimi-k2"

    @property
    def scale(self) -> float:
        return 2.0 * self.tau


@dataclass(frozen=True, kw_only=True)
class PmdPart(SequenceSquare):
    """PMD-part: regress on the reward minus the group's log-partition, ``A_i = r_i - tau log mean_j e^{r_j/tau}``.

    Attributes:
        leave_one_out: estimate the partition from the other completions.
        floor: smallest accepted mean of ``e^{(r_j - r_max)/tau}``; 0: none, OpenKimi: 1e-8.

    **Limits**: tau -> infinity: ``pmd-mean``. tau -> 0 at ``s = 0``: the best completions get ~0 and the rest are
    pushed down by their distance to the best.
    References: Kimi Team 2025, arXiv 2501.12599; Xu et al. 2026, arXiv 2602.05933 (reconstruction).
    """

    name: ClassVar[str] = "pmd-part"
    leave_one_out: bool = False
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_nonnegative("floor", self.floor)

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return partition_advantage(rewards, self.tau, self.leave_one_out, self.floor)


@dataclass(frozen=True, kw_only=True)
class PmdBaseline(SequenceSquare):
    """The baselines between the mean and the log-partition: ``b = (1 - mix) mean r + mix tau log Z``.

    Attributes:
        mix: 0 is the mean, 1 the log-partition.
        leave_one_out: leave a completion out of its own baseline.

    **Limits**: mix = 0: ``pmd-mean``; mix = 1: ``pmd-part`` without floor; advantages are linear in mix.
    References: our own interpolation, to study where between the two the baseline should sit.
    """

    name: ClassVar[str] = "pmd-baseline"
    mix: float = 0.5
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must lie between 0 (mean) and 1 (log-partition), got {self.mix}")

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        mean = leave_one_out_advantage(rewards) if self.leave_one_out else mean_advantage(rewards)
        part = partition_advantage(rewards, self.tau, self.leave_one_out)
        return (1.0 - self.mix) * mean + self.mix * part


@dataclass(frozen=True, kw_only=True)
class Opmd(SequenceSquare):
    """OpenKimi's ``opmd``: the square divided by the sequence's length, with leave-one-out baselines.

    ``loss_i = tau/2 (A_i/tau - s_i)^2 / |y_i|`` (``length_normalization = "sequence"``, its seq-mean-token-mean), or
    divided by the completion budget (``"constant"``, its seq-mean-token-sum-norm).

    Attributes:
        baseline: ``mean`` (its ``rloo``) or ``partition`` (its ``ploo``).
        floor: of the partition's inner mean.

    **Limits**: ``length_normalization = "none"``: ``pmd-mean`` or ``pmd-part`` with ``leave_one_out``. Under
    ``"sequence"`` a longer sequence settles at a smaller ratio for equal reward.
    References: horizon-rl/OpenKimi, commit 3126d4c (public code of arXiv 2602.05933).
    """

    name: ClassVar[str] = "opmd"
    length_normalization: LengthNormalization = "sequence"
    tau: float = 0.01
    baseline: Literal["mean", "partition"] = "mean"
    floor: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_nonnegative("floor", self.floor)

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        if self.baseline == "partition":
            return partition_advantage(rewards, self.tau, leave_one_out=True, floor=self.floor)
        return leave_one_out_advantage(rewards)

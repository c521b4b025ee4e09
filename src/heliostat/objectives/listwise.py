"""Listwise objectives: a target distribution over the completions of one prompt, and a divergence to it.

    p = softmax(z_new)      z: one logit per completion, from its log-probability
    q = softmax(z_old + A)  the maximiser of  <q, A> - KL(q || p_old)  over the group's simplex; A in nats
    loss of a group of n = n KL(q || p), or n KL(p || q)

Loss and coefficients are 0 where the policy matches the target. The factor n gives a group the weight of its
completions, as in every other objective; with groups of one size and no length normalisation the loss of a step is the
mean divergence over its prompts. A micro-batch holds whole groups.

Left out: targets over all possible completions (``mirror`` regresses on those, one completion at a time).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heliostat.objectives.baselines import ADVANTAGES, Baseline, whitened_advantage
from heliostat.objectives.contract import Objective, Terms, require_positive
from heliostat.types import TokenBatch

Values = Float[Tensor, " sequence"]


class Projection(NamedTuple):
    """A divergence between target and policy over each group.

    Attributes:
        loss: each completion's term; they add up to the group's divergence.
        slope: the derivative of the group's divergence in the completion's logit.
    """

    loss: Values
    slope: Values


@dataclass(frozen=True, kw_only=True)
class Listwise(Objective, ABC):
    """A divergence to the tilted distribution over each group's completions.

    Attributes:
        logits: a completion's logit is the ``sum`` or the ``mean`` of its tokens' log-probabilities. Sums are the
            probabilities of whole answers; means keep long answers from dominating a group of uneven lengths.
    """

    logits: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length_normalization == "sequence":
            raise ValueError(
                f"length_normalization = 'sequence' weighs the completions of a group unequally, so '{self.name}' "
                "would no longer fit its target; use logits = 'mean' for a mean over tokens"
            )

    @property
    def needs_whole_groups(self) -> bool:
        return True

    @abstractmethod
    def project(self, logits: Values, anchor: Values, tilt: Values, group: Int[Tensor, " sequence"]) -> Projection:
        """Compute the divergence of ``softmax(logits)`` and the target, by group.

        Args:
            logits, anchor: of the current and of the old policy.
            tilt: the advantages, in nats.
            group: of each completion, from 0.
        """

    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        assert tokens.group is not None  # checked by loss
        labels, group = torch.unique(tokens.group, return_inverse=True)
        length = tokens.num_tokens.clamp(min=1) if self.logits == "mean" else torch.ones_like(tokens.num_tokens)
        logits = tokens.sum_by_sequence(logp_new) / length
        fixed = logits.detach()
        anchor = tokens.sum_by_sequence(tokens.logp_old.to(fixed.dtype)) / length
        size = group.bincount(minlength=len(labels))[group].to(fixed.dtype)
        found = self.project(fixed, anchor, tokens.advantage.to(fixed.dtype), group)
        # The slope in closed form is exactly 0 where policy and target are the same numbers; a derivative of logsumexp
        # would leave rounding there, which Adam scales up to a step.
        return Terms(size * (found.loss + found.slope * (logits - fixed)))

    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        """Allow it only at the anchor: afterwards the target pulls a zero-signal group back to the old policy."""
        return first_update


@dataclass(frozen=True, kw_only=True)
class Tpo(Listwise):
    """Target policy optimization: cross-entropy to ``q ~ p_old e^{u / eta}``, u the rewards in standard deviations.

    ``p_i = pi(y_i) / sum_j pi(y_j)`` over the group. The loss is the cross-entropy minus the target's entropy, which
    is constant; coefficient ``n (q_i - p_i)``. u is 0 in a group without spread, where q is ``p_old``.

    Attributes:
        eta: temperature of the target; the paper uses 1, and finds 1/4 to 2 alike.

    **Limits**: ``p = q``: no gradient. Two completions: logistic regression on ``z_1 - z_2`` with the label
    ``sigmoid(z_old,1 - z_old,2 + (u_1 - u_2) / eta)``. eta -> infinity at the anchor: ``n p_i (u_i - <p, u>) / eta``,
    the policy gradient of the group; where its ``p_old`` are equal, ``reinforce`` on u, over eta. Equal ``p_old`` in a
    group: the gradient of forward ``lpo`` with the same tilt.
    References: Kaddour 2026, arXiv 2604.06159, equations 1 to 3, and github.com/JeanKaddour/tpo at 73473b9. Logits are
    sums as in equation 1; TRL's trainer for it takes means.
    """

    name: ClassVar[str] = "tpo"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("eta", self.eta)

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return whitened_advantage(rewards) / self.eta

    def project(self, logits: Values, anchor: Values, tilt: Values, group: Int[Tensor, " sequence"]) -> Projection:
        return forward_kl(log_softmax_by(group, logits), log_softmax_by(group, anchor + tilt))


@dataclass(frozen=True, kw_only=True)
class Lpo(Listwise):
    """Listwise policy optimization: exact projection on ``w ~ e^{R / tau}`` over ratios, ``P ~ pi_new / pi_old``.

    The group's completions were drawn from the old policy, so ratios and not probabilities are their weights: at the
    anchor all are equal, and P estimates the policy on the group. ``forward`` has the coefficient ``n (w_i - P_i)``,
    ``reverse`` ``n P_i (D - d_i)`` with ``d_i = s_i - A_i``, ``D = sum_j P_j d_j`` and s the log-ratio.

    Attributes:
        projection: ``forward`` is KL(w || P), which keeps every good completion; ``reverse`` is KL(P || w).
        baseline: scales the temperature: ``mean`` is tau itself, ``standardized`` tau times the group's standard
            deviation (of GRPO), ``mean-normalized`` tau times its mean reward (of MaxRL).
        tau: temperature; with ``baseline = "mean"`` in reward units.

    **Limits**: ``P = w``: no gradient. ``forward``: coefficients of a group add up to 0, and none exceeds n.
    ``reverse`` at the anchor: exactly ``reinforce`` with this baseline, over tau. tau -> infinity at the anchor: so is
    ``forward``. Log-ratios equal to ``R / tau`` plus any constant of the group are optimal, where ``pmd-part`` allows
    one constant, its log-partition, and ``pmd-mean`` another. Two completions: pairwise, ``-w_1 log sigmoid(s_1 - s_2)
    - w_2 log sigmoid(s_2 - s_1)`` up to a constant.
    References: Qu et al. 2026, arXiv 2605.06139, equations 8, 10 and 11 (reconstruction: whether its deviation divides
    by n or n - 1 was not settled, ours is GRPO's n - 1; the behaviour policy is the anchor here, so that the anchor's
    own logits are 0).
    """

    name: ClassVar[str] = "lpo"
    projection: Literal["forward", "reverse"] = "forward"
    baseline: Baseline = "standardized"
    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tau", self.tau)

    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        return ADVANTAGES[self.baseline](rewards) / self.tau

    def project(self, logits: Values, anchor: Values, tilt: Values, group: Int[Tensor, " sequence"]) -> Projection:
        log_ratio = logits - anchor
        log_policy, log_target = log_softmax_by(group, log_ratio), log_softmax_by(group, tilt)
        if self.projection == "forward":
            return forward_kl(log_policy, log_target)
        policy, gap = log_policy.exp(), log_ratio - tilt
        mean_gap = sum_by(group, policy * gap)
        return Projection(policy * (log_policy - log_target), policy * (gap - mean_gap[group]))


def forward_kl(log_policy: Values, log_target: Values) -> Projection:
    """Compute ``KL(target || policy)`` of each group by completion, and its slope ``policy - target``."""
    policy, target = log_policy.exp(), log_target.exp()
    return Projection(target * (log_target - log_policy), policy - target)


def sum_by(group: Int[Tensor, " sequence"], values: Values) -> Float[Tensor, " group"]:
    """Sum values over each group."""
    return values.new_zeros(int(group.max()) + 1 if group.numel() else 0).index_add(0, group, values)


def log_softmax_by(group: Int[Tensor, " sequence"], logits: Values) -> Values:
    """Compute the log-softmax over each group; a group of one gives 0."""
    num_groups = int(group.max()) + 1 if group.numel() else 0
    peak = logits.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, logits, "amax")
    below = logits - peak[group]
    return below - sum_by(group, below.exp()).log()[group]

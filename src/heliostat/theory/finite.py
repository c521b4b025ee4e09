"""Steps from n rollouts: exact distributions for binary rewards, summed over the binomial instead of sampled.

With k of n rollouts correct, both baselines are functions of k: PMD-mean uses ``k / n``, PMD-part uses
``tau log((k/n) e^{1/tau} + 1 - k/n)``. The targets follow, and then the policy that fits them: two classes, correct
and incorrect, refitted without error to the sampled squared loss under exact normalisation

    minimise  k/n (log rho_1 - t_1)^2 + (1 - k/n) (log rho_0 - t_0)^2,   p rho_1 + (1 - p) rho_0 = 1.

That is the population problem with weights ``l = p / (k/n)`` and ``(1 - p) / (1 - k/n)``, so the same solver answers
it. Where all rollouts agree the targets are zero and the policy stays.

Left out: more than two classes, policies that cannot be refitted exactly, updates that stop early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.cards import Card
from heliostat.linalg.arrays import as_tensor
from heliostat.theory.instance import ArrayLike
from heliostat.theory.step import fit_targets


@dataclass(frozen=True, slots=True, repr=False)
class FiniteSample(Card):
    """The distribution of one step over the draw of n rollouts; the last axis is the number of correct ones.

    Attributes:
        weights: binomial probabilities of 0 to n correct.
        target_correct: regression target of a correct rollout, in nats; 0 where there is none.
        target_incorrect: likewise of an incorrect rollout.
        log_odds: log-odds of success under the refitted policy.
        lam: multiplier of the refit; negative where the baseline overshot the log-partition of these targets.
        over_partition: 1 where the sampled baseline lies above the true ``tau log Z`` (with leave-one-out: the largest
            of the group's baselines), else 0.
    """

    weights: Float[Tensor, "*batch count"]
    target_correct: Float[Tensor, "*batch count"]
    target_incorrect: Float[Tensor, "*batch count"]
    log_odds: Float[Tensor, "*batch count"]
    lam: Float[Tensor, "*batch count"]
    over_partition: Float[Tensor, "*batch count"]

    def mean(self, quantity: Float[Tensor, "*batch count"]) -> Float[Tensor, "*batch"]:
        """Compute the expectation of a per-count quantity."""
        return (self.weights * quantity).sum(-1)

    def sd(self, quantity: Float[Tensor, "*batch count"]) -> Float[Tensor, "*batch"]:
        """Compute the standard deviation of a per-count quantity."""
        centred = quantity - self.mean(quantity)[..., None]
        return self.mean(centred**2).sqrt()


def finite_pmd_mean(
    success: ArrayLike, tau: ArrayLike, num_rollouts: int, *, leave_one_out: bool = False
) -> FiniteSample:
    """Compute one PMD-mean step from n rollouts with 0/1 rewards, over all possible draws.

    ``t = (r - k/n) / tau``; with leave-one-out, the mean of the other n - 1

    Args:
        success: probability of a correct rollout, strictly between 0 and 1; a number or ``[*batch]``.
        tau: temperature in reward units per nat; broadcasts with ``success``.
        num_rollouts: n, at least 1 (2 with leave-one-out).
        leave_one_out: whether each rollout's baseline leaves that rollout out.

    Raises:
        ValueError: success outside (0, 1), tau not positive, or too few rollouts.

    **Limits**: ``n -> inf``: the population step. Leave-one-out is ``tau -> tau (n - 1) / n``. Target noise of
    incorrect rollouts: SD ``sqrt(p (1 - p) / n) / tau``.

    References: reconstruction, see ``theory.step``.
    """
    return _finite_sample(success, tau, num_rollouts, _mean_baseline, leave_one_out)


def finite_pmd_part(
    success: ArrayLike, tau: ArrayLike, num_rollouts: int, *, leave_one_out: bool = False
) -> FiniteSample:
    """Compute one PMD-part step from n rollouts with 0/1 rewards, over all possible draws.

    ``t = r / tau - log((k/n) e^{1/tau} + 1 - k/n)``; with leave-one-out, the mean of the other n - 1

    Args, Returns and Raises as in ``finite_pmd_mean``.

    **Limits**: ``n -> inf``: the population step. ``tau -> inf``: PMD-mean. Small tau: an incorrect rollout's target
    jumps from 0 to about ``-1 / tau`` with the first success of its group.

    References: reconstruction, see ``theory.step``.
    """
    return _finite_sample(success, tau, num_rollouts, _partition_baseline, leave_one_out)


Baseline = Callable[[Tensor, Tensor], Tensor]


def _mean_baseline(rate: Tensor, tau: Tensor) -> Tensor:
    """Compute ``b / tau`` for a success rate."""
    return rate / tau


def _partition_baseline(rate: Tensor, tau: Tensor) -> Tensor:
    """Compute ``log Z`` for a success rate, without forming ``e^{1/tau}``."""
    return torch.logaddexp(rate.log() + 1 / tau, torch.log1p(-rate))


def _finite_sample(
    success: ArrayLike, tau: ArrayLike, num_rollouts: int, baseline: Baseline, leave_one_out: bool
) -> FiniteSample:
    p, temperature = _check(success, tau, num_rollouts, leave_one_out)
    k = torch.arange(num_rollouts + 1, dtype=torch.float64).expand(*p.shape[:-1], num_rollouts + 1)
    rate, others = k / num_rollouts, num_rollouts - int(leave_one_out)
    # Leaving a correct rollout out removes a success, leaving an incorrect one out removes a failure.
    seen_by_correct = (k - 1).clamp(min=0) / others if leave_one_out else rate
    seen_by_incorrect = k.clamp(max=others) / others
    target_correct = torch.where(k > 0, 1 / temperature - baseline(seen_by_correct, temperature), 0.0)
    highest = baseline(seen_by_incorrect, temperature)
    target_incorrect = torch.where(k < num_rollouts, -highest, 0.0)
    log_probs = torch.stack([p.log(), torch.log1p(-p)], -1).expand(*k.shape, 2)
    mixed = (k > 0) & (k < num_rollouts)
    targets = torch.where(mixed[..., None], torch.stack([target_correct, target_incorrect], -1), 0.0)
    sampled = torch.where(mixed, rate, 0.5)
    log_lengths = log_probs - torch.stack([sampled.log(), torch.log1p(-sampled)], -1)
    fit = fit_targets(log_probs, targets, log_lengths, (log_probs.exp() * targets).sum(-1))
    return FiniteSample(
        weights=_binomial(k, p, num_rollouts),
        target_correct=target_correct,
        target_incorrect=target_incorrect,
        log_odds=torch.special.logit(p) + fit.log_ratio[..., 0] - fit.log_ratio[..., 1],
        lam=fit.sign * fit.log_size.exp(),
        over_partition=(highest > _partition_baseline(p, temperature) * (1 + 1e-12)).double(),
    )


def _check(success: ArrayLike, tau: ArrayLike, num_rollouts: int, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    p = as_tensor(success)
    temperature = as_tensor(tau)
    if not bool(((p > 0) & (p < 1)).all()):
        raise ValueError("success must lie strictly between 0 and 1: otherwise all rollouts agree and nothing moves")
    if not bool((torch.isfinite(temperature) & (temperature > 0)).all()):
        raise ValueError("tau must be positive and finite")
    if num_rollouts < 1 + leave_one_out:
        raise ValueError(f"{num_rollouts} rollouts are too few; leave-one-out needs 2, otherwise 1")
    p, temperature = torch.broadcast_tensors(p, temperature)  # type: ignore[no-untyped-call]
    return p[..., None], temperature[..., None]


def _binomial(k: Tensor, p: Tensor, num_rollouts: int) -> Tensor:
    n = torch.tensor(num_rollouts, dtype=torch.float64)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (choose + k * p.log() + (n - k) * torch.log1p(-p)).exp()

"""Advantages of one group of completions: the reward minus a baseline made of the same group's rewards.

All of them work in float64, return the dtype of the rewards, and give exactly 0 to every member of a group whose
rewards are all equal. None but ``mean_normalized_advantage`` changes when a constant is added to every reward. A group
may have any size; a group of one has advantage 0 where its own reward is the baseline, and is refused where the
baseline leaves it out.

Left out: learned baselines, and any statistic over more than one group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, " completion"]
Baseline = Literal["mean", "leave-one-out", "standardized", "mean-normalized"]


def mean_advantage(rewards: Rewards) -> Rewards:
    """Subtract the group's mean from each reward: ``A_i = r_i - mean_j r_j``.

    Raises:
        ValueError: no rewards, or a reward that is NaN or infinite.

    **Limits**: all rewards equal: exactly 0. A group of one: 0.
    """
    below_peak = _below_peak(rewards)
    return _like(below_peak - below_peak.mean(), rewards)


def leave_one_out_advantage(rewards: Rewards) -> Rewards:
    """Subtract the mean of the others from each reward: ``A_i = r_i - mean_{j != i} r_j = (r_i - mean r) n / (n - 1)``.

    Raises:
        ValueError: fewer than two rewards, or a reward that is NaN or infinite.

    **Limits**: ``n / (n - 1)`` times ``mean_advantage``; all rewards equal: exactly 0.
    References: Kool, van Hoof, Welling 2019 (ICLR DeepRLStructPred workshop); Ahmadian et al. 2024, arXiv 2402.14740.
    """
    size = _others(rewards) + 1
    below_peak = _below_peak(rewards)
    return _like((below_peak - below_peak.mean()) * (size / (size - 1)), rewards)


def standardized_advantage(rewards: Rewards, eps: float = 1e-4) -> Rewards:
    """Divide the mean advantage by the group's spread: ``A_i = (r_i - mean r) / (std r + eps)``, std with n - 1.

    Raises:
        ValueError: no rewards, or a reward that is NaN or infinite.

    **Limits**: unchanged by a positive rescaling of the rewards as eps -> 0. All rewards equal, or a group of one:
    exactly 0.
    References: Shao et al. 2024, arXiv 2402.03300.
    """
    below_peak = _below_peak(rewards)
    spread = below_peak.std() if below_peak.numel() > 1 else below_peak.new_zeros(())
    return _like((below_peak - below_peak.mean()) / (spread + eps), rewards)


def whitened_advantage(rewards: Rewards) -> Rewards:
    """Standardise rewards by the group's own deviation, ``A_i = (r_i - mean r) / std r``, std with n and no constant.

    Raises:
        ValueError: no rewards, or a reward that is NaN or infinite.

    **Limits**: unchanged by a positive rescaling of the rewards, exactly; squares of a group with spread average to 1.
    All rewards equal, or a group of one: exactly 0.
    References: Kaddour 2026, arXiv 2604.06159, appendix A.
    """
    below_peak = _below_peak(rewards)
    centred = below_peak - below_peak.mean()
    spread = centred.square().mean().sqrt()
    return _like(centred / spread if spread > 0 else torch.zeros_like(centred), rewards)


def mean_normalized_advantage(rewards: Rewards) -> Rewards:
    """Divide the mean advantage by the mean reward: ``A_i = (r_i - mean r) / mean r``; 0 where no reward is above 0.

    Raises:
        ValueError: no rewards, or a reward that is negative, NaN or infinite.

    **Limits**: unchanged by a positive rescaling of the rewards. All rewards equal, or a group of one: exactly 0.
    References: Tajwar et al. 2026, arXiv 2602.02710.
    """
    below_peak = _below_peak(rewards)
    if num_bad := int((rewards < 0).sum()):
        raise ValueError(
            f"{num_bad} of {rewards.numel()} rewards in a group are negative, and a baseline of 'mean-normalized' "
            "(maxrl) divides by their mean; add a constant to the rewards so that the worst is 0"
        )
    mean = rewards.detach().to(torch.float64).mean()
    centred = below_peak - below_peak.mean()
    return _like(centred / mean if mean > 0 else torch.zeros_like(centred), rewards)


def partition_advantage(rewards: Rewards, tau: float, leave_one_out: bool = False, floor: float = 0.0) -> Rewards:
    """Subtract the group's log-partition estimate from each reward, ``A_i = r_i - tau log Z_i``.

    ``Z_i = max(mean_j e^{(r_j - r_max) / tau}, floor) e^{r_max / tau}``, the inner mean over all j, or over j != i.
    Evaluated as a log-mean-exp: ``e^{1/tau}`` is never formed, so any finite tau > 0 works.

    Args:
        rewards: one per completion.
        tau: temperature of the mirror step, in reward units.
        leave_one_out: leave completion i out of its own estimate.
        floor: smallest accepted inner mean; caps ``A_i / tau`` at ``-log floor``. 0: none.

    Raises:
        ValueError: no rewards (fewer than two with ``leave_one_out``), or a reward that is NaN or infinite.

    **Limits**: tau -> infinity: ``mean_advantage`` (or ``leave_one_out_advantage``). tau -> 0: ``r_i - max_j r_j``.
    All rewards equal: exactly 0. Never above the mean advantage (Jensen), floor aside.
    References: Kimi Team 2025, arXiv 2501.12599, section 2.3.2; leave-one-out and floor as in the public code of Xu et
    al. 2026, arXiv 2602.05933 (OpenKimi's ``ploo``, floor 1e-8).
    """
    size = rewards.numel()
    scaled = _below_peak(rewards) / tau
    if leave_one_out:
        count = _others(rewards)
        itself = torch.eye(size, dtype=torch.bool, device=rewards.device)
        counted = scaled.expand(size, size).masked_fill(itself, -math.inf)
    else:
        count, counted = size, scaled.expand(1, size)
    peak = counted.amax(dim=1)
    log_mean = peak + torch.log((counted - peak[:, None]).exp().sum(dim=1) / count)
    if floor > 0:
        log_mean = log_mean.clamp(min=math.log(floor))
    return _like(tau * (scaled - log_mean), rewards)


ADVANTAGES: dict[Baseline, Callable[[Rewards], Rewards]] = {
    "mean": mean_advantage,
    "leave-one-out": leave_one_out_advantage,
    "standardized": standardized_advantage,
    "mean-normalized": mean_normalized_advantage,
}


def _below_peak(rewards: Rewards) -> Rewards:
    """Compute ``r - max r`` in float64: exactly 0 for equal rewards, unchanged by a shift; bad rewards are refused."""
    if rewards.ndim != 1 or rewards.numel() == 0:
        raise ValueError(f"advantages need one reward per completion, got a tensor of shape {tuple(rewards.shape)}")
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be floating-point numbers, got {rewards.dtype}, which would truncate advantages")
    num_bad = int((~torch.isfinite(rewards)).sum())
    if num_bad:
        raise ValueError(
            f"{num_bad} of {rewards.numel()} rewards in a group are NaN or infinite; a verifier has to return finite "
            "scores (drop the completion or give it a reward)"
        )
    values = rewards.detach().to(torch.float64)
    return values - values.max()


def _others(rewards: Rewards) -> int:
    """Count the other completions of each one; a leave-one-out baseline needs at least one."""
    if rewards.numel() == 1:
        raise ValueError(
            "a leave-one-out baseline needs at least 2 completions per group, got 1; raise rollout.group_size or "
            "choose a baseline that keeps the completion in (leave_one_out = false, or baseline = 'mean')"
        )
    return rewards.numel() - 1


def _like(advantage: Rewards, rewards: Rewards) -> Rewards:
    return advantage.to(rewards.dtype)

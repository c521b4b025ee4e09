"""The multiplier of the normalisation constraint: a root-finder for log lambda that never leaves log space.

    minimise  1/2 E_old[(s - t)^2 / l]   subject to   E_old[e^s] = 1
    stationary at  s + lambda l e^s = t,  so  s = t - w,  w = W0(lambda l e^t)

For a target with ``E_old[e^t] > 1`` the mean ratio falls from above one to below one as lambda grows from zero, so
the root is unique. ``E[e^s] = 1`` is written as an equality of two sums of non-negative terms, compared by their
logarithms, so that lambda keeps its relative precision however small it is. Which two sums depends on the targets:

    small steps    E[phi(s)] + E[t] = E[w],   phi(s) = e^s - 1 - s >= 0     (from s = t - w)
    large steps    E[(e^s - 1)^+] = E[(1 - e^s)^+]

In the first, what cancels between a gain and a loss of first order is gone before anything is summed; in the second,
nothing grows with 1 / tau.

Left out: targets with ``E_old[e^t] < 1``, where lambda is negative (``theory.loophole``).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.lambert import lambertw_exp

MAX_ITERATIONS = 300
STEP_TOLERANCE = 4e-15  # stop when log lambda moves by less than this, relative to max(1, |log lambda|)
TAYLOR_BELOW = 0.5  # phi is summed as a series where |s| is smaller: e^s - 1 - s would lose its digits
NUM_TAYLOR_TERMS = 16
LARGE_STEP = 1.0  # mean absolute target, in nats, from which the second form is used


def log_phi(s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Compute ``log(e^s - 1 - s)``; minus infinity at zero."""
    right, left = s.clamp(min=TAYLOR_BELOW), s.clamp(max=-TAYLOR_BELOW)
    near = 2 * s.abs().log() - math.log(2) + _series(s).log()
    far = torch.where(s > 0, right + torch.log1p(-(1 + right) * (-right).exp()), (left.exp() - 1 - left).log())
    return torch.where(s.abs() < TAYLOR_BELOW, near, far)


def log_partition_of_centred(
    log_probs: Float[Tensor, "*batch action"], centred: Float[Tensor, "*batch action"]
) -> Float[Tensor, "*batch"]:
    """Compute ``log E_old[e^c]`` for ``E_old[c] = 0`` as ``log(1 + E[phi(c)])``, which stays exact near zero."""
    excess = (log_probs + log_phi(centred)).logsumexp(-1)
    return torch.logaddexp(torch.zeros_like(excess), excess)


def _log_phi_slope(s: Tensor) -> Tensor:
    """Compute ``phi'(s) / phi(s)``; infinite at zero."""
    right, left = s.clamp(min=TAYLOR_BELOW), s.clamp(max=-TAYLOR_BELOW)
    near = (torch.expm1(s) / s) * (2 / s) / _series(s)
    far = torch.where(s > 0, 1 / (1 - right / torch.expm1(right)), torch.expm1(left) / (left.exp() - 1 - left))
    return torch.where(s.abs() < TAYLOR_BELOW, near, far)


def _series(s: Tensor) -> Tensor:
    """Compute ``2 phi(s) / s^2 = 1 + s/3 (1 + s/4 (1 + ...))`` near zero."""
    small = s.clamp(-TAYLOR_BELOW, TAYLOR_BELOW)
    series = torch.ones_like(s)
    for n in range(NUM_TAYLOR_TERMS, 2, -1):
        series = 1 + small / n * series
    return series


def log_ratio_at(
    log_lam: Float[Tensor, "*batch"],
    targets: Float[Tensor, "*batch action"],
    log_lengths: Float[Tensor, "*batch action"],
) -> tuple[Float[Tensor, "*batch action"], Float[Tensor, "*batch action"], Float[Tensor, "*batch action"]]:
    """Compute the stationary point for a given lambda: ``s``, ``w = lambda l e^s``, and ``log w``.

    ``s`` is taken from whichever of ``t - w`` and ``log w - log(lambda l)`` does not cancel.
    """
    weight = log_lam[..., None] + log_lengths
    u = weight + targets
    w = lambertw_exp(u)
    log_w = torch.where(u > 1, w.clamp(min=1.0).log(), u - w)
    return torch.where(u > 1, log_w - weight, targets - w), w, log_w


def solve_log_lambda(
    log_probs: Float[Tensor, "*batch action"],
    targets: Float[Tensor, "*batch action"],
    log_lengths: Float[Tensor, "*batch action"],
    mean_target: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Find ``log lambda`` with ``E_old[ratio] = 1``, by Newton inside a shrinking bracket.

    Args:
        log_probs: the old policy; minus infinity outside the support, where targets must be 0.
        targets: regression targets ``t`` with ``log E_old[e^t] > 0``, in nats.
        log_lengths: log of the weights ``l``.
        mean_target: ``E_old[t]``, given rather than summed because it is exactly zero for PMD-mean.

    Raises:
        ArithmeticError: no sign change was found or the iteration did not settle within ``MAX_ITERATIONS``.
    """
    problem = (log_probs, targets, log_lengths, mean_target)
    low, high = _bracket(*problem)
    log_lam = 0.5 * (low + high)
    last, before_last = high - low, high - low
    done = torch.zeros_like(log_lam, dtype=torch.bool)
    for _ in range(MAX_ITERATIONS):
        value, slope = _excess(log_lam, *problem)
        low, high = torch.where(value > 0, log_lam, low), torch.where(value > 0, high, log_lam)
        newton = -value / slope
        landing = log_lam + newton
        # Newton is trusted while it stays inside and its steps at least halve every second time; else bisect.
        trusted = (landing >= low) & (landing <= high) & (newton.abs() <= 0.5 * before_last)
        step = torch.where(trusted, newton, 0.5 * (low + high) - log_lam)
        done |= (value == 0) | (step.abs() <= STEP_TOLERANCE * log_lam.abs().clamp(min=1.0))
        if done.all():
            return log_lam
        last, before_last = step.abs(), last
        log_lam = torch.where(done, log_lam, log_lam + step)
    raise ArithmeticError(f"the multiplier did not settle within {MAX_ITERATIONS} iterations")


def _bracket(log_probs: Tensor, targets: Tensor, log_lengths: Tensor, mean_target: Tensor) -> tuple[Tensor, Tensor]:
    """Find values of log lambda on either side of the root."""
    # At lambda = max t / l every ratio is at most one. Where no target is above zero, because one action holds all but
    # less than a float of the probability, lambda is so small that s = t, and E[phi(t)] = lambda E[l e^t].
    reach = torch.where(targets > 0, targets.log() - log_lengths, -torch.inf).amax(-1)
    first_order = (log_probs + log_phi(targets)).logsumexp(-1) - (log_probs + log_lengths + targets).logsumexp(-1)
    high = torch.where(torch.isneginf(reach), first_order + 1, reach)
    low, stride = high - 1, 1.0
    for _ in range(64):
        value, _ = _excess(low, log_probs, targets, log_lengths, mean_target)
        if (value > 0).all():
            return low, high
        stride *= 2
        low = torch.where(value > 0, low, low - stride)
    raise ArithmeticError(
        "no multiplier makes the mean ratio one: the targets' log-partition is not above zero to float precision"
    )


def _excess(
    log_lam: Tensor, log_probs: Tensor, targets: Tensor, log_lengths: Tensor, mean_target: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the logarithm of excess over deficit (negative past the root), and its derivative."""
    s, w, log_w = log_ratio_at(log_lam, targets, log_lengths)
    rate = w / (1 + w)  # s falls at this rate in log lambda
    large = ((log_probs.exp() * targets.abs()).sum(-1) > LARGE_STEP)[..., None]
    magnitude = (-torch.expm1(-s.abs())).log()
    surplus = torch.where(s > 0, s + magnitude, -torch.inf)
    deficit = torch.where(s < 0, magnitude, -torch.inf)
    up = log_probs + torch.where(large, surplus, log_phi(s))
    down = log_probs + torch.where(large, deficit, log_w)
    up_slope = -rate * torch.where(large, 1 / -torch.expm1(-s), _log_phi_slope(s))
    down_slope = torch.where(large, rate / torch.expm1(-s), 1 / (1 + w))
    extra = torch.where(large[..., 0], 0.0, mean_target)  # a negative E[t] changes sides
    log_up, up_slope = _log_sum(up, extra.clamp(min=0).log(), up_slope)
    log_down, down_slope = _log_sum(down, (-extra).clamp(min=0).log(), down_slope)
    return log_up - log_down, up_slope - down_slope


def _log_sum(terms: Tensor, constant: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``log(sum e^terms + e^constant)`` and its slope from the slopes of the terms; empty terms have none."""
    total = torch.cat([terms, constant[..., None]], dim=-1).logsumexp(-1)
    shares = (terms - total[..., None]).exp()
    return total, torch.where(shares > 0, shares * slopes, 0.0).sum(-1)

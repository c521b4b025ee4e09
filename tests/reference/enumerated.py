"""Policies small enough to enumerate: the batch is the population, so a loss can be minimised exactly.

The anchor is uniform over the actions and each action is present once. Every action is one sequence, whose log-prob is
spread evenly over its tokens.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import lambertw
from torch import Tensor

from heliostat.objectives import Objective
from heliostat.types import TokenBatch


def optimum(
    objective: Objective, rewards: Float[Tensor, " action"], lengths: Int[Tensor, " action"] | None = None
) -> Float[Tensor, " action"]:
    """Sequence log-ratios of the policy that minimises the objective's population loss, by L-BFGS on its logits."""
    size = len(rewards)
    lengths = torch.ones(size, dtype=torch.int64) if lengths is None else lengths
    sequence = torch.repeat_interleave(torch.arange(size), lengths)
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    logp_old = (torch.full((size,), -math.log(size), dtype=torch.float64) / lengths)[sequence]
    tokens = TokenBatch(sequence, lengths, objective.advantages(rewards), logp_old, logp_old)
    normalizer = objective.normalizer(lengths)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def logp_new() -> Tensor:
        return (torch.log_softmax(logits, dim=0) / lengths)[sequence]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(logp_new(), tokens, normalizer).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return tokens.sum_by_sequence(logp_new().detach() - logp_old)


def lambert_ratio(
    rewards: Float[Tensor, " action"], tau: float, lengths: Int[Tensor, " action"] | None = None
) -> tuple[Float[Tensor, " action"], float]:
    """rho = W(lam |y| e^{A/tau}) / (lam |y|), and the lam that makes the mean of rho 1 (reconstructed theorem)."""
    target = ((rewards - rewards.mean()) / tau).exp().numpy()
    size = torch.ones(len(rewards)).numpy() if lengths is None else lengths.to(torch.float64).numpy()

    def ratio(log_lam: float):
        lam = math.exp(log_lam) * size
        return lambertw(lam * target).real / lam

    log_lam = brentq(lambda x: ratio(x).mean() - 1.0, -30, 30, xtol=1e-14)
    return torch.from_numpy(ratio(log_lam)), math.exp(log_lam)

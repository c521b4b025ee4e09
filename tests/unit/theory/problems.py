"""Random problems and a solver that shares nothing with the one under test: L-BFGS on logits."""

from __future__ import annotations

import torch
from torch import Tensor


def random_problem(seed: int, num_actions: int = 5) -> tuple[Tensor, Tensor]:
    """An old policy and rewards, float64; every third problem has binary rewards."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(num_actions, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    rewards = torch.randn(num_actions, generator=generator, dtype=torch.float64)
    return probs, (rewards > 0).double() if seed % 3 == 0 else rewards


def squared_loss(probs: Tensor, targets: Tensor, lengths: Tensor, log_new: Tensor) -> Tensor:
    """``1/2 E_old[(log rho - t)^2 / l]``, written out."""
    return 0.5 * (probs * (log_new - probs.log() - targets) ** 2 / lengths).sum(-1)


def minimise_over_simplex(loss, num_actions: int, starts: int = 3, seed: int = 0) -> tuple[Tensor, float]:
    """Best policy and loss found by L-BFGS on softmax logits from several random starts."""
    generator = torch.Generator().manual_seed(seed)
    best_probs, best_loss = None, float("inf")
    for start in range(starts):
        scale = 3.0 * start
        logits = (scale * torch.randn(num_actions, generator=generator, dtype=torch.float64)).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [logits],
            max_iter=600,
            history_size=20,
            tolerance_grad=1e-13,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )

        def closure(logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(logits.log_softmax(-1))
            value.backward()
            return value

        optimizer.step(closure)
        value = float(loss(logits.detach().log_softmax(-1)))
        if value < best_loss:
            best_probs, best_loss = logits.softmax(-1).detach(), value
    return best_probs, best_loss

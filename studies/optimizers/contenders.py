"""The optimizers of the small tasks with the centre of each one's learning rates, and a training step with any of them.

Settings other than learning rates are fixed here and not tuned. Left out: the rivals' own rules (``rivals``), the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rivals import KLShampooLike, Split, muon
from tasks import loss_of
from torch import nn

from heliostat.curvature import sampled_log_likelihood
from heliostat.optim import RENG, RING, Eva, KroneckerProduct, KroneckerSum, Rank1NaturalGradient, RKalman

Maker = Callable[[nn.Module, float], torch.optim.Optimizer]


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def peer(name: str, **settings: Any) -> Maker:
    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(model.parameters(), lr=lr, weight_decay=0.0, **settings)

    return make


def muon_and_adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Muon for every matrix but the last layer's, AdamW for that one, convolutions, biases and norms."""
    matrices = [p for p in model.parameters() if p.ndim == 2][:-1]
    return Split(model, lr, matrices, muon, betas=(0.9, 0.999))


def kl_shampoo_like(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Every matrix under it, everything else under AdamW."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return Split(model, lr, matrices, KLShampooLike, betas=(0.9, 0.999))


def sophia(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    optimizer: Any = peer("SophiaH")(model, lr)
    optimizer.extra_pass = "hessian"  # every tenth gradient must be differentiable
    return optimizer


CONTENDERS: dict[str, tuple[float, Maker]] = {
    "SGD": (0.1, lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9)),
    "AdamW": (3e-3, adamw),
    "rank-1": (0.1, lambda m, lr: Rank1NaturalGradient(m.parameters(), lr=lr, momentum=0.9)),
    "rank-1, 16 scores": (
        0.1,
        lambda m, lr: Rank1NaturalGradient(m.parameters(), lr=lr, momentum=0.9, num_scores=16, damping=1.0),
    ),
    "Eva": (0.03, lambda m, lr: Eva(m, lr=lr, damping=0.3, adamw_lr=3e-3)),
    "K-FAC": (0.01, lambda m, lr: RING(m, lr=lr, damping=0.01, adamw_lr=3e-3)),
    "RING": (0.01, lambda m, lr: RING(m, lr=lr, damping=0.01, rho=0.1, adamw_lr=3e-3)),
    "RENG (AdamW)": (3e-3, lambda m, lr: RENG(adamw(m, lr), rho=0.03)),
    "R-Kalman": (0.1, lambda m, lr: RKalman(m.parameters(), lr=lr, covariance=1.0, forgetting=0.99, num_scores=4)),
    "Kronecker-sum": (3e-3, lambda m, lr: KroneckerSum(m.named_parameters(), lr=lr)),
    "Kronecker-product": (3e-3, lambda m, lr: KroneckerProduct(m.named_parameters(), lr=lr)),
    "SOAP": (3e-3, peer("SOAP", precondition_frequency=10)),
    "Shampoo": (3e-3, peer("ScalableShampoo", preconditioning_compute_steps=10, start_preconditioning_step=5)),
    "KL-Shampoo-like": (3e-3, kl_shampoo_like),
    "Muon": (3e-3, muon_and_adamw),
    "Sophia": (0.3, sophia),
}
PEERS = ("SOAP", "Shampoo", "Sophia")
"""Those that need `pytorch_optimizer`."""


def train_step(optimizer: Any, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Take one step with the extra passes that the optimizer asks for; returns the loss before it.

    Args:
        optimizer: of torch, of the library or of a rival: what each can do is asked of the object.
    """
    optimizer.zero_grad()
    kind = getattr(optimizer, "extra_pass", "none")
    if kind == "reevaluation":
        return optimizer.step(lambda: loss_of(model, inputs, targets))
    loss = loss_of(model, inputs, targets)
    twice = kind == "hessian" and optimizer.param_groups[0].get("step", 0) % optimizer.update_period == 0
    loss.backward(create_graph=twice)
    if kind == "scores":
        for row in range(optimizer.num_scores):
            with optimizer.score():
                sampled_log_likelihood(model(inputs[row : row + 1])).backward()
    if kind == "statistics" and optimizer.wants_statistics:
        with optimizer.statistics():
            sampled_log_likelihood(model(inputs)).backward()
    optimizer.step()
    return float(loss.detach())

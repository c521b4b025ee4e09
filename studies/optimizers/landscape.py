"""Where a run ended: the norm of the gradient there, and the largest eigenvalue of the Hessian.

Left out: the rest of the spectrum.
"""

from __future__ import annotations

import torch
from tasks import loss_of
from torch import Tensor, nn

NUM_PRODUCTS = 12
"""Lanczos steps; the largest eigenvalue alone is found to a few per cent in so many."""


def gradient_norm_and_sharpness(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """``|grad L|`` and the largest eigenvalue of ``grad^2 L`` on one batch, by Lanczos with double backward passes.

    Limits:
        as many products as weights: the eigenvalue itself.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(model, inputs, targets), weights, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    basis, diagonal, beside = [vector / vector.norm()], [], []
    for _ in range(min(NUM_PRODUCTS, len(flat))):
        product = torch.autograd.grad(flat, weights, basis[-1], retain_graph=True)
        image = torch.cat([part.flatten() for part in product])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # against all earlier vectors, twice: rounding
            image = image - sum((image @ b) * b for b in basis)
        beside.append(float(image.norm()))
        if beside[-1] < 1e-6 * max(abs(d) for d in diagonal):
            break
        basis.append(image / beside[-1])
    num = len(diagonal)
    small = torch.diag(torch.tensor(diagonal))
    small += torch.diag(torch.tensor(beside[: num - 1]), 1) + torch.diag(torch.tensor(beside[: num - 1]), -1)
    return float(flat.detach().norm()), float(torch.linalg.eigvalsh(small)[-1])

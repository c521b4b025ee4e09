"""The Fisher matrix of a small classifier, written out from the Jacobian of its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def dense_fisher(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute ``F = (1/N) sum_n J_n' (diag(p_n) - p_n p_n') J_n``, [weight, weight], in the order of parameters."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def logits(values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values, (inputs,))

    p = torch.softmax(logits(weights), -1)
    jacobian = torch.cat([block.reshape(*p.shape, -1) for block in jacrev(logits)(weights).values()], -1)
    inner = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.einsum("nai,nab,nbj->ij", jacobian, inner, jacobian) / len(p)

"""Products with the Fisher matrix of a classifier, and the same matrix written out for tests.

    F = (1/N) sum_n sum_y p(y | x_n) u_ny u_ny' = (1/N) sum_n J_n' (diag(p_n) - p_n p_n') J_n

Left out: solving with F (the optimizers'), and models whose output is not a vector of logits per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp

Weights = dict[str, Tensor]


def _logits_of(model: nn.Module, inputs: Tensor) -> tuple[Weights, Callable[[Weights], Tensor]]:
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= {name: buffer.detach() for name, buffer in model.named_buffers()}

    def logits(values: Weights) -> Tensor:
        output: Tensor = functional_call(model, {**fixed, **values}, (inputs,))
        return output.reshape(-1, output.shape[-1])

    return weights, logits


def fisher_product(model: nn.Module, inputs: Tensor, vector: Mapping[str, Tensor]) -> Weights:
    """``F v`` by one forward-mode and one reverse-mode product, exact over labels, averaged over rows of logits.

    Args:
        vector: one tensor per trainable parameter, by name.
    """
    weights, logits = _logits_of(model, inputs)
    pushed = jvp(logits, (weights,), (dict(vector),))
    output, change = pushed[0], pushed[1]
    p = torch.softmax(output, -1)
    curved = p * change - p * (p * change).sum(-1, keepdim=True)
    pull_back = vjp(logits, weights)[1]
    (product,) = pull_back(curved / len(output))
    result: Weights = product
    return result


def score_fisher_product(
    scores: Mapping[str, Float[Tensor, "sample ..."]], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``(1/m) sum_k u_k (u_k' v)``: the product with the Fisher matrix of these scores."""
    along = sum((u.flatten(1) @ vector[name].reshape(-1) for name, u in scores.items()), torch.zeros(()))
    return {name: torch.tensordot(along, u, dims=1) / len(u) for name, u in scores.items()}


def dense_fisher(model: nn.Module, inputs: Tensor) -> Float[Tensor, "weight weight"]:
    """F written out, parameters in the model's order: for tests, of small models only."""
    weights, logits = _logits_of(model, inputs)
    p = torch.softmax(logits(weights), -1)
    blocks = [block.reshape(*p.shape, -1) for block in jacrev(logits)(weights).values()]
    jacobian = torch.cat(blocks, -1)
    inner = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.einsum("nai,nab,nbj->ij", jacobian, inner, jacobian) / len(p)

"""Products with the Fisher matrix of a classifier, without the matrix.

    F = (1/N) sum_n sum_y p(y | x_n) u_ny u_ny' = (1/N) sum_n J_n' (diag(p_n) - p_n p_n') J_n

Left out: solving with F (the optimizers'), and models whose output is not a vector of logits per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

Weights = dict[str, Float[Tensor, "..."]]


def _logits_of(
    model: nn.Module, inputs: Shaped[Tensor, "sample ..."]
) -> tuple[Weights, Callable[[Weights], Float[Tensor, "row label"]]]:
    """Return the trainable weights, and the logits [row, label] as a function of them."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= {name: buffer.detach() for name, buffer in model.named_buffers()}

    def logits(values: Weights) -> Float[Tensor, "row label"]:
        output: Tensor = functional_call(model, {**fixed, **values}, (inputs,))
        return output.reshape(-1, output.shape[-1])

    return weights, logits


def fisher_product(
    model: nn.Module, inputs: Shaped[Tensor, "sample ..."], vector: Mapping[str, Float[Tensor, ...]]
) -> Weights:
    """Compute ``F v`` by one forward-mode and one reverse-mode product.

    It is exact over labels, and averaged over rows of logits.

    Args:
        vector: ``v``, one tensor per trainable parameter, by name.

    Returns:
        ``F v`` in the same form.
    """
    weights, logits = _logits_of(model, inputs)
    pushed = jvp(logits, (weights,), (dict(vector),))
    output, change = pushed[0], pushed[1]
    p = torch.softmax(output, -1)
    # J v is known; (diag(p) - p p') of it, then J' of that.
    curved = p * change - p * (p * change).sum(-1, keepdim=True)
    pull_back = vjp(logits, weights)[1]
    (product,) = pull_back(curved / len(output))
    result: Weights = product
    return result

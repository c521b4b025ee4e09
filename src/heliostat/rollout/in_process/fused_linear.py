"""Linear maps for decoding: several of one input as one product, on weights in oneDNN's own order.

    y = x [W1 W2 ..] + [b1 b2 ..]

A decoding pass has few rows, and a product of few rows costs up to twice as much on weights that lie row by row as on
weights that oneDNN has reordered for its kernels (``benchmarks/race_trl/products.py``). Weights change at every step,
so the reordered copies are made before a batch of prompts and dropped after it.

The operations are those that torch's own compiler uses, and are not documented. They are therefore looked up and tried
(``can_reorder``), and the plain products take their place where anything is wrong.

Left out: gradients, which a module that has been given a reordered weight computes as it always does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.models import LoadedModel

MAX_BYTES = 2**31
"""Models with larger weights are not reordered: while they sample, the copy would be the most that they hold."""

TRIAL_ROWS = 3


class FusedLinear:
    """Several linear maps of one input as one product.

    **Limits**: of a single map, the map. In bfloat16 the bits are those of the maps; in float32 a few digits of the
    last place differ.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        self._linears = linears
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    @torch.no_grad()
    def reorder(self) -> None:
        """Copy the current weights in oneDNN's order, to be used until they are dropped."""
        weights = [linear.weight for linear in self._linears]
        biases = [linear.bias for linear in self._linears if linear.bias is not None]
        joined = weights[0] if len(weights) == 1 else torch.cat([*weights])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined.detach().contiguous())
        self._bias = torch.cat([*biases]) if biases else None

    def drop(self) -> None:
        """Forget the copies; the maps themselves are used from now on."""
        self._weight = self._bias = None

    def __call__(self, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        if self._weight is None:
            return torch.cat([linear(x) for linear in self._linears], dim=-1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product

    def onto(self, residual: Float[Tensor, "*row output"], x: Float[Tensor, "*row input"]) -> Tensor:
        """Return ``residual + self(x)``."""
        # A product in a narrow dtype is rounded before it is added, as in the model.
        if self._weight is None or x.dtype != torch.float32:
            return residual + self(x)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return total


def can_reorder(loaded: LoadedModel) -> bool:
    """Return whether weights of this model can be reordered on this machine, after a trial with one of them."""
    linears = linear_modules(loaded.model)
    num_bytes = sum(linear.weight.nbytes for linear in linears)
    return loaded.model.device.type == "cpu" and 0 < num_bytes <= MAX_BYTES and _agrees(linears[0])


def linear_modules(module: nn.Module) -> list[nn.Linear]:
    """Return a module's plain linear maps, whose ``forward`` is torch's own."""
    return [part for part in module.modules() if type(part) is nn.Linear and "forward" not in vars(part)]


@contextmanager
def reordered(linears: Sequence[nn.Linear]) -> Iterator[None]:
    """Within this context, these modules compute on reordered copies of their weights, where no gradient is needed."""
    with ExitStack() as stack:
        for linear in linears:
            product = FusedLinear(linear)
            product.reorder()
            stack.callback(vars(linear).pop, "forward")
            vars(linear)["forward"] = functools.partial(_forward, linear, product)
        yield


def _forward(linear: nn.Linear, product: FusedLinear, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
    # Another thread may be training the same module.
    if torch.is_grad_enabled() or x.dtype != linear.weight.dtype:
        return nn.functional.linear(x, linear.weight, linear.bias)
    return product(x)


@torch.inference_mode()
def _agrees(linear: nn.Linear) -> bool:
    """Return whether the reordered product gives a map's own numbers, to rounding."""
    generator = torch.Generator().manual_seed(0)
    weight = linear.weight
    x = torch.randn(TRIAL_ROWS, linear.in_features, generator=generator).to(weight.dtype)
    product, expected = FusedLinear(linear), nn.functional.linear(x, weight, linear.bias)
    try:
        product.reorder()
        actual = product(x)
    except (AttributeError, NotImplementedError, RuntimeError):  # the operation is missing, or lacks this dtype
        return False
    scale = float((x.abs() @ weight.abs().T).max())
    return bool((actual - expected).abs().max() <= 8 * torch.finfo(weight.dtype).eps * scale)

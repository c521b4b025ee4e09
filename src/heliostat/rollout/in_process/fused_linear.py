"""Linear maps for decoding: several of one input as one product, on weights in oneDNN's own order.

    y = x [W1 W2 ..] + [b1 b2 ..]        adapters added to the weights, or to y (``adapted_linear``)

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
from heliostat.rollout.in_process.adapted_linear import (
    JoinedAdapters,
    base_of,
    is_linear_map,
    merged_weight,
    merges,
)

MAX_BYTES = 2**31
"""Models with larger weights are not reordered: while they sample, the copy would be the most that they hold."""

TRIAL_ROWS = 3


class FusedLinear:
    """Several linear maps of one input as one product.

    **Limits**: of a single map, the map. In bfloat16 the bits are those of the maps; in float32 a few digits of the
    last place differ.
    """

    def __init__(self, *linears: nn.Module) -> None:
        self._linears = linears
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._adapters: JoinedAdapters | None = None

    @torch.no_grad()
    def reorder(self) -> None:
        """Copy the current weights in oneDNN's order, to be used until they are dropped."""
        if all(map(merges, self._linears)):
            weights = [merged_weight(linear) for linear in self._linears]
        else:
            weights = [base_of(linear).weight.detach() for linear in self._linears]
            self._adapters = JoinedAdapters.of(self._linears)
        biases = [base_of(linear).bias for linear in self._linears if base_of(linear).bias is not None]
        joined = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined.contiguous())
        self._bias = torch.cat([*biases]) if biases else None

    def drop(self) -> None:
        """Forget the copies; the maps themselves are used from now on."""
        self._weight = self._bias = self._adapters = None

    def __call__(self, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        if self._weight is None:
            return torch.cat([linear(x) for linear in self._linears], dim=-1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product if self._adapters is None else (product + self._adapters(x)).to(product.dtype)

    def onto(self, residual: Float[Tensor, "*row output"], x: Float[Tensor, "*row input"]) -> Tensor:
        """Return ``residual + self(x)``."""
        # A product in a narrow dtype is rounded before it is added, as in the model.
        if self._weight is None or self._adapters is not None or x.dtype != torch.float32:
            return residual + self(x)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return total

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Return whether the product on reordered weights gives the maps' own numbers, to rounding."""
        first = base_of(self._linears[0]).weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(TRIAL_ROWS, first.shape[1], generator=generator).to(first.dtype)
        expected = torch.cat([_plain(linear, x) for linear in self._linears], dim=-1).float()
        try:
            self.reorder()
            gap = self(x).float() - expected
        except (AttributeError, NotImplementedError, RuntimeError):  # the operation is missing, or lacks this dtype
            return False
        finally:
            self.drop()
        # Of each number a few roundings to its dtype, and a sum over the inputs in float32.
        rounding = torch.finfo(first.dtype).eps + x.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
        return bool(gap.norm() <= 4 * rounding * expected.norm())


def can_reorder(loaded: LoadedModel) -> bool:
    """Return whether weights of this model can be reordered on this machine, after a trial with one of them."""
    linears = linear_modules(loaded.model)
    num_bytes = sum(base_of(linear).weight.nbytes for linear in linears)
    return loaded.model.device.type == "cpu" and 0 < num_bytes <= MAX_BYTES and FusedLinear(linears[0]).agrees()


def linear_modules(module: nn.Module) -> list[nn.Module]:
    """Return a module's linear maps in the forms that are known here (``adapted_linear``).

    A map whose adapter is not to be added to its weight is given as its parts: the plain map and the adapter's two.
    """
    return [*dict.fromkeys(_linear_modules(module))]  # a module may stand in several places


def _linear_modules(module: nn.Module) -> Iterator[nn.Module]:
    if is_linear_map(module) and merges(module):
        yield module
    else:
        for child in module.children():
            yield from _linear_modules(child)


@contextmanager
def reordered(linears: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context, these modules compute on reordered copies of their weights, where no gradient is needed."""
    with ExitStack() as stack:
        for linear in linears:
            product = FusedLinear(linear)
            product.reorder()
            stack.callback(vars(linear).pop, "forward")
            vars(linear)["forward"] = functools.partial(_forward, linear, product)
        yield


def _forward(linear: nn.Module, product: FusedLinear, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
    # Another thread may be training the same module.
    if torch.is_grad_enabled() or x.dtype != base_of(linear).weight.dtype:
        return _plain(linear, x)
    return product(x)


def _plain(linear: nn.Module, x: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
    """Compute a map by its class's own forward, which another may have taken the place of."""
    y: Tensor = type(linear).forward(linear, x)
    return y

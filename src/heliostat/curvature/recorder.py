"""Hooks on a model's linear layers, which record pairs of inputs and output gradients.

A layer's weight gradient is ``sum_n e_n x_n'`` over the rows n it saw (samples, or tokens), with inputs ``x`` and
output gradients ``e``. A bias is a further input that is always 1. A statistic reduces the pairs
(``curvature.kronecker``).

Left out: convolutions, embeddings, norms and quantised layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Statistic(Protocol):
    """A reduction of the rows of backward passes, layer by layer, until it is cleared."""

    def add(self, layer: str, inputs: Float[Tensor, "row in"], output_grads: Float[Tensor, "row out"]) -> None: ...

    def clear(self) -> None: ...


def covered_layers(model: nn.Module, max_size: int | None = None, *, with_frozen: bool = False) -> dict[str, nn.Linear]:
    """Find the linear layers whose weight is trainable and used nowhere else, by name.

    Args:
        max_size: leave out layers with more inputs (the bias counted) or outputs than this.
        with_frozen: include layers with a frozen weight, which may be unfrozen later.
    """
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and (module.weight.requires_grad or with_frozen)
        and module.weight.numel()
        and not module.weight.is_complex()
        and all(users[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
        and (max_size is None or max(_num_inputs(module, with_frozen), module.out_features) <= max_size)
    }


def trainable_parts(layer: nn.Linear) -> tuple[nn.Parameter, ...]:
    """Return the layer's trainable parameters, weight before bias; their columns are those of its matrix."""
    return tuple(part for part in layer.parameters(recurse=False) if part.requires_grad)


def num_columns(layer: nn.Linear) -> int:
    """Count the columns of the layer's current matrix: those of its trainable parameters."""
    return sum(part.shape[1] if part.ndim > 1 else 1 for part in trainable_parts(layer))


def _num_inputs(layer: nn.Linear, with_frozen: bool) -> int:
    has_bias = layer.bias is not None and (layer.bias.requires_grad or with_frozen)
    return layer.in_features + has_bias


class Recorder:
    """Hooks that pass the rows of every backward pass to ``statistic`` while ``is_recording`` is set.

    A model that ``torch.compile`` has already run does not call hooks added later. Compiled afterwards, it calls them
    between the compiled parts.

    Args:
        layers: from ``covered_layers``; a layer used several times in one pass gives the rows of each use.
        statistic: receives the inputs of trainable columns (the last one of ones where there is a bias) and output
            gradients, both in the weights' dtype and at least in float32, under autocast too.
        skip_zero_gradients: leave out rows whose output gradient is exactly 0, such as padding, so that no statistic
            depends on them.
    """

    def __init__(self, layers: dict[str, nn.Linear], statistic: Statistic, skip_zero_gradients: bool = False) -> None:
        self.layers, self.statistic, self.skip_zero_gradients = layers, statistic, skip_zero_gradients
        self.is_recording = False
        self._handles = [
            layer.register_forward_hook(partial(self._after_forward, name)) for name, layer in layers.items()
        ]

    @contextmanager
    def recording(self, parameters: list[Float[Tensor, ...]] | None = None) -> Iterator[None]:
        """Record forward and backward passes inside; the gradients of ``parameters`` are put back afterwards."""
        before, kept = self.is_recording, [parameter.grad for parameter in parameters or []]
        for parameter in parameters or []:
            parameter.grad = None
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = before
            for parameter, gradient in zip(parameters or [], kept, strict=True):
                parameter.grad = gradient

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(
        self, name: str, layer: nn.Linear, args: tuple[Any, ...], output: Float[Tensor, "*position out"]
    ) -> None:
        if self.is_recording and torch.is_grad_enabled() and output.requires_grad and trainable_parts(layer):
            # Backward may run after `recording` has ended: a pass that was recorded forward is always completed.
            after = partial(self._after_backward, name, layer, args[0].detach())
            output.register_hook(after)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _after_backward(
        self,
        name: str,
        layer: nn.Linear,
        inputs: Float[Tensor, "*position in"],
        output_grad: Float[Tensor, "*position out"],
    ) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        grads = output_grad.detach().reshape(-1, output_grad.shape[-1])
        if self.skip_zero_gradients:
            scored = (grads != 0).any(-1)
            rows, grads = rows[scored], grads[scored]
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        rows, grads = rows.to(dtype), grads.to(dtype)
        taken = [rows if part is layer.weight else rows.new_ones(len(rows), 1) for part in trainable_parts(layer)]
        if not taken:  # frozen between forward and backward pass
            return
        with torch.autocast(rows.device.type, enabled=False):
            self.statistic.add(name, taken[0] if len(taken) == 1 else torch.cat(taken, 1), grads)

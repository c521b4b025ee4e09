"""A snapshot of weights and optimizer state before a step, to restore where the step fails.

The gradient alone does not tell whether all tensors that a step writes stay finite: squares of finite numbers overflow,
quotients by small ones too, and a factorisation may fail halfway through a model.

Left out: numbers outside ``state``, which an optimizer writes after a step that was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

OptimizerState = dict[Tensor, dict[str, Any]]


class Snapshot:
    """Copies of ``weights`` and of everything in ``state``, which double their memory for as long as it lives."""

    @torch.no_grad()
    def __init__(self, weights: Iterable[Tensor], state: OptimizerState) -> None:
        self._state = state
        self._weights = [(weight, weight.detach().clone()) for weight in weights]
        self._entries = {owner: (dict(own), _copied(own)) for owner, own in state.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Write every number back into the tensor that held it."""
        for weight, before in self._weights:
            weight.copy_(before)
        for owner in [owner for owner in self._state if owner not in self._entries]:
            del self._state[owner]
        for owner, (held, before) in self._entries.items():
            own = self._state[owner]
            own.clear()
            for key, value in before.items():
                old = held[key]
                own[key] = old.copy_(value) if isinstance(old, Tensor) and old.shape == value.shape else value


def stays_finite(weights: Sequence[Tensor], state: OptimizerState) -> bool:
    """Return whether no weight and no entry of the state is NaN or infinite, with one read from each device.

    Limits:
        Finite entries whose sum overflows count as not finite.
    """
    tensors = [*weights, *(tensor for own in state.values() for tensor in _tensors(own))]
    sums: dict[torch.device, list[Tensor]] = {}
    meshes: dict[Any, bool] = {}
    for tensor in tensors:
        part = tensor.detach()
        if isinstance(part, DTensor):
            meshes.setdefault(part.device_mesh, True)
            part = part.to_local()
        if part.is_floating_point() and part.numel():
            sums.setdefault(part.device, []).append(part.sum(dtype=_sum_type(part)).double())
    is_finite = all(bool(torch.isfinite(torch.stack(found)).all()) for found in sums.values())
    answers = [_everywhere(is_finite, mesh) for mesh in meshes]  # every rank takes part, whatever it found
    return all(answers) if answers else is_finite


def _sum_type(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _everywhere(is_finite: bool, mesh: Any) -> bool:
    """Return whether ``is_finite`` holds on every rank of a mesh; a collective."""
    num_bad = torch.tensor(0.0 if is_finite else 1.0, device=mesh.device_type)
    total: Tensor = DTensor.from_local(num_bad, mesh, [Partial()] * mesh.ndim).full_tensor()
    return float(total) == 0


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)

"""A second model of the same architecture that can be given the weights of an earlier moment.

    twin = sampler_copy_of(loaded)          no memory of its own yet: every weight is the trained model's
    kept = snapshot_weights(loaded)  a copy of what training moves
    with with_weights(twin, kept): ...   the twin computes with the copy

Frozen weights (those below adapters) are never copied. Tied weights stay tied, hooks and the tokenizer are copied, so
that nothing of a twin that is used in another thread is touched by the trained model.

Left out: sharded weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from heliostat.models.loaded_model import LoadedModel


def sampler_copy_of(loaded: LoadedModel) -> LoadedModel:
    """A copy of everything but the weights' memory."""
    shared: dict[int, object] = {}
    for parameter in loaded.model.parameters():
        twin = nn.Parameter(parameter.detach(), requires_grad=False)
        twin.moves = parameter.requires_grad  # type: ignore[attr-defined]
        shared[id(parameter)] = twin
    return copy.deepcopy(loaded, shared)


def snapshot_weights(loaded: LoadedModel) -> list[Tensor]:
    """Copies of the weights that training moves, as they are now."""
    return [parameter.detach().clone() for parameter in loaded.model.parameters() if parameter.requires_grad]


def are_current(weights: Sequence[Tensor], loaded: LoadedModel) -> bool:
    """Whether these copies (from ``snapshot_weights``) are what the model has now, whoever wrote it."""
    now = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    return len(weights) == len(now) and all(torch.equal(one, own) for one, own in zip(weights, now, strict=True))


@contextmanager
def with_weights(twin: LoadedModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, a twin has these weights (from ``snapshot_weights`` of its model); nothing is copied.

    **Limits**: with the current weights, the twin's outputs are the model's, bit for bit.
    """
    moved = [parameter for parameter in twin.model.parameters() if parameter.moves]  # type: ignore[attr-defined]
    resting = [parameter.data for parameter in moved]
    try:
        for parameter, weight in zip(moved, weights, strict=True):
            parameter.data = weight
        yield
    finally:
        for parameter, weight in zip(moved, resting, strict=True):
            parameter.data = weight

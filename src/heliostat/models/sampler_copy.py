"""Copies of a model that share its weights: to compute with those of an earlier moment, or for own gradients.

    copied = sampler_copy_of(loaded)           no memory of its own yet: every weight is the trained model's
    kept = snapshot_weights(loaded)            a copy of the weights that training moves
    with with_weights(copied, kept): ...       the sampler's copy computes with the snapshot

    copied = gradient_copy_of(loaded)          the same weights, and gradients of its own
    share_weights(copied, loaded)              again, after weights were replaced instead of changed in place

Frozen weights (those below adapters) are never copied. Tied weights stay tied, hooks and the tokenizer are copied, so
that the trained model touches nothing of a copy that another thread uses.

Left out: weights sharded over ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from heliostat.models.loaded_model import LoadedModel


def sampler_copy_of(loaded: LoadedModel) -> LoadedModel:
    """Copy everything but the weights' memory."""
    shared: dict[int, object] = {}
    for parameter in loaded.model.parameters():
        own = nn.Parameter(parameter.detach(), requires_grad=False)
        own.moves = parameter.requires_grad  # type: ignore[attr-defined]
        shared[id(parameter)] = own
    return copy.deepcopy(loaded, shared)


def gradient_copy_of(loaded: LoadedModel) -> LoadedModel:
    """Copy everything but the weights' memory; the copy's backward passes leave the model's gradients alone.

    **Limits**: the copy's outputs and gradients are the model's, bit for bit.
    """
    shared: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in loaded.model.parameters()
    }
    return copy.deepcopy(loaded, shared)


def share_weights(copied: LoadedModel, loaded: LoadedModel) -> None:
    """Let a copy compute with the weights that the model has now, and differentiate those that it trains now."""
    for own, parameter in zip(copied.model.parameters(), loaded.model.parameters(), strict=True):
        own.data = parameter.data
        own.requires_grad_(parameter.requires_grad)


def snapshot_weights(loaded: LoadedModel) -> list[Tensor]:
    """Copy the weights that training moves."""
    return [parameter.detach().clone() for parameter in loaded.model.parameters() if parameter.requires_grad]


def are_current(weights: Sequence[Tensor], loaded: LoadedModel) -> bool:
    """Whether these copies (from ``snapshot_weights``) are what the model has now, whoever wrote it."""
    now = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    return len(weights) == len(now) and all(torch.equal(one, own) for one, own in zip(weights, now, strict=True))


@contextmanager
def with_weights(copied: LoadedModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """Let a sampler's copy compute with ``weights`` (from ``snapshot_weights`` of its model); nothing is copied.

    **Limits**: with the current weights, the copy's outputs are the model's, bit for bit.
    """
    moved = [parameter for parameter in copied.model.parameters() if parameter.moves]  # type: ignore[attr-defined]
    resting = [parameter.data for parameter in moved]
    try:
        for parameter, weight in zip(moved, weights, strict=True):
            parameter.data = weight
        yield
    finally:
        for parameter, weight in zip(moved, resting, strict=True):
            parameter.data = weight

"""float32 copies of weights that are kept in a shorter type: made, compared with the weights, and rounded into them.

A bfloat16 weight near 1 cannot change by less than 0.4%, so that most updates of a small learning rate would vanish.
Optimizers therefore step copies, and the weights are the rounded copies after every step.

The copies belong to the weights, not the other way round: whoever writes weights (a warm start, a checkpoint, another
optimizer, a user between two steps) need not know of them. An entry that is not its copy's rounding was written by
somebody else, and is taken over before the copies are used or saved.

Left out: who keeps the copies (``finite`` for rules of ours, ``masters`` for torch's).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

COPY = "master"
"""The entry of a parameter's optimizer state that holds its copy."""


def is_short(weight: Tensor) -> bool:
    """Whether a step must be taken on a copy: floating point of less than 32 bits."""
    return weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64)


@torch.no_grad()
def copy_of(weight: Tensor) -> Tensor:
    """A copy that a step can be taken on: float32, or float64 of a float64 weight."""
    return weight.detach().clone().to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def take_over(copies: Mapping[Tensor, Tensor]) -> None:
    """Take every entry of a weight that is not its copy's rounding into the copy."""
    for parameter, copied in copies.items():
        weight, held = _here(parameter), _here(copied)
        rounded = held.to(weight.dtype)
        # On other devices the comparison would be waited for.
        if weight.device.type != "cpu" or not torch.equal(_bits(weight), _bits(rounded)):
            torch.where(weight == rounded, held, weight.to(held.dtype), out=held)


@torch.no_grad()
def round_from(copies: Mapping[Tensor, Tensor]) -> None:
    """Write every copy's rounding into its weight."""
    if copies:
        torch._foreach_copy_([_here(parameter) for parameter in copies], [_here(one) for one in copies.values()])


def _bits(weight: Tensor) -> Tensor:
    """The same memory as integers, as wide as they fit: torch compares those fastest."""
    if not weight.is_contiguous() or weight.data_ptr() % 8:
        return weight
    return weight.view(-1).view(torch.int16 if weight.numel() % 4 else torch.int64)


def _here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut over ranks; its own memory."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.detach()

"""Master copies: float32 copies of weights that are stored in a lower-precision dtype.

A bfloat16 weight near 1 cannot change by less than 0.4%, so most updates of a small learning rate would vanish.
Optimizers therefore step a float32 copy, and the weight is the copy rounded after every step.

The weights stay the truth. A warm start, a checkpoint, another optimizer or a user may write them between two steps
without knowing of the copies: an entry that differs from its copy's rounding was written by somebody else, and is
adopted before the copies are used or saved.

Left out: the storage of the copies (``base.optimizer`` for our own rules, ``optim.master_weights`` for torch's).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

MASTER = "master"
"""The key of a parameter's optimizer state that holds its master copy."""


def is_low_precision(weight: Tensor) -> bool:
    """Return whether a step needs a master copy: floating point of less than 32 bits."""
    return weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64)


@torch.no_grad()
def master_copy(weight: Tensor) -> Tensor:
    """Copy a weight to float32, or to float64 where it is float64."""
    return weight.detach().clone().to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def adopt_writes(masters: Mapping[Tensor, Tensor]) -> None:
    """Copy every entry of a weight that differs from its master's rounding into the master, in place.

    Args:
        masters: the master copy of each parameter.
    """
    for parameter, master in masters.items():
        weight, held = _local_part(parameter), _local_part(master)
        rounded = held.to(weight.dtype)
        # On a CPU a comparison is cheaper than the copy that it usually saves; elsewhere it forces a synchronisation.
        if weight.device.type != "cpu" or not torch.equal(_as_integers(weight), _as_integers(rounded)):
            torch.where(weight == rounded, held, weight.to(held.dtype), out=held)


@torch.no_grad()
def write_rounded(masters: Mapping[Tensor, Tensor]) -> None:
    """Round every master copy into its weight."""
    if masters:
        held = [_local_part(master) for master in masters.values()]
        torch._foreach_copy_([_local_part(parameter) for parameter in masters], held)


def _as_integers(weight: Tensor) -> Tensor:
    """View 16-bit floats as the widest integers that fit, which torch compares fastest."""
    if not weight.is_contiguous() or weight.data_ptr() % 8:
        return weight
    return weight.view(-1).view(torch.int16 if weight.numel() % 4 else torch.int64)


def _local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that may be sharded; it shares memory with the tensor."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.detach()

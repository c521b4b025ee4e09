"""Tensors that may be sharded over ranks: inner products in at least float32, shards, and checks.

Left out: reductions over data-parallel ranks, whose gradients are equal already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Sum inner products, ``sum_i <left_i, right_i>``: each in at least float32, the sum over i in float64.

    Limits:
        A NaN anywhere, or an infinity, makes the result not finite.
    """
    return float(sum((inner(a, b).double() for a, b in zip(left, right, strict=True)), torch.zeros(())))


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of one pair, as a scalar."""
    left, right = upcast(left), upcast(right)
    if isinstance(left, DTensor) or isinstance(right, DTensor):
        total: Tensor = (left * right).sum().full_tensor()  # type: ignore[attr-defined]
        return total
    return torch.dot(left.reshape(-1), right.reshape(-1))


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def local_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, sharded as ``like`` is; a plain tensor is returned itself."""
    if not isinstance(like, DTensor):
        return tensor
    assert isinstance(tensor, DTensor)
    part: Tensor = tensor.redistribute(placements=like.placements).to_local()
    return part


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over ranks; a collective if it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that every rank has whole, as ``like`` is; no collective."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def sum_over_shards(parts: Sequence[Tensor], parameters: Sequence[Tensor]) -> np.ndarray:
    """Sum products, each of this rank's shard of a parameter, over the shards; float64, [product, ...].

    There are as many products for every parameter, in the parameters' order. It takes one read from the device, and one
    collective for each way in which parameters are sharded.
    """
    stacked = torch.stack(list(parts)).double()
    each = len(parts) // len(parameters)
    ways: dict[Any, list[int]] = {}
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            own = range(index * each, (index + 1) * each)
            ways.setdefault((parameter.device_mesh, parameter.placements), []).extend(own)
    for (mesh, placements), indices in ways.items():
        over = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
        stacked[indices] = DTensor.from_local(stacked[indices], mesh, over).full_tensor()
    return stacked.cpu().numpy()


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no entry is NaN or infinite; any such entry makes the sum of all entries so too.

    Limits:
        Finite entries whose sum overflows count as not finite: a step with them would be lost as well.
    """
    if not tensors:
        return True
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        part = upcast(tensor).sum()
        total = total + full_tensor(part).double().cpu()
    return bool(torch.isfinite(total))

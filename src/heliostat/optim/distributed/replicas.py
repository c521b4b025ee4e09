"""Replicas: ranks that hold copies of one model, and whether the copies agree.

Statistics of one rank's rows would move each copy in another direction. An optimizer therefore exchanges them over its
process group, which is the default group where none is named, and compares the copies at its first step and now and
then.

Left out: averaging gradients (DistributedDataParallel's, FSDP2's, or the training loop's).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import isclose
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from heliostat.optim.distributed.sharded_tensors import local_shard, sum_over_shards, upcast

ProcessGroup = dist.ProcessGroup | Literal["alone"] | None
"""Ranks that hold copies: a group, this rank ``"alone"``, or ``None``: the default group, where there is one."""

ALONE: Literal["alone"] = "alone"
TOLERANCE = 1e-4
"""Relative difference above which copies are different: far above rounding, far below a step on other data."""
CHECK_EVERY = 1024
"""Steps between comparisons of the copies, after the first 1024."""
WAY_OUT = (
    "average gradients over ranks before step() (DistributedDataParallel and FSDP2 do), name the ranks that hold "
    "copies (process_group=...), or set process_group='alone' where every rank trains a model of its own"
)


class ReplicasDisagree(RuntimeError):
    """Ranks that should hold copies of one model do not."""


def ranks_of(process_group: ProcessGroup) -> dist.ProcessGroup | None:
    """Return the ranks a step exchanges statistics with; ``None`` where there is no other.

    Raises:
        ValueError: this process is not in the group, or the group is something else.
    """
    if isinstance(process_group, str):
        if process_group != ALONE:
            raise ValueError(f"process_group must be a group, None or '{ALONE}', got '{process_group}'")
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if process_group is None else process_group
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError(
            f"process_group must be a torch.distributed group that this rank ({dist.get_rank()}) is in, got "
            f"{group!r}; of a DeviceMesh take get_group()"
        )
    return group if dist.get_world_size(group) > 1 else None


def is_due(call: int) -> bool:
    """Return whether a call (from 1) compares the copies: at powers of two, and at every ``CHECK_EVERY``-th call."""
    return call & (call - 1) == 0 or call % CHECK_EVERY == 0


@torch.no_grad()
def check_replicas(
    owner: str, parameters: Sequence[Tensor], ranks: dist.ProcessGroup, copies: Mapping[Tensor, Tensor]
) -> None:
    """Compare shapes, weights and gradients of all ranks, by their sums and squared sums; a collective.

    Args:
        owner: name of the optimizer, for the error.
        copies: by parameter, the tensor that a step moves where that is not the parameter itself.

    Raises:
        ReplicasDisagree: on every rank, if any two differ.
    """
    shapes = zlib.crc32(repr([tuple(parameter.shape) for parameter in parameters]).encode())
    weights = [copies.get(parameter, parameter) for parameter in parameters]
    own = (shapes, *(_sums(tensors, parameters) for tensors in (weights, [p.grad for p in parameters])))
    everyone: list[Any] = [None] * dist.get_world_size(ranks)
    dist.all_gather_object(everyone, own, group=ranks)
    for (rank, one), (other, another) in pairwise(enumerate(everyone)):
        who = f"{owner}: ranks {rank} and {other} of its process group"
        if one[0] != another[0]:
            raise ReplicasDisagree(f"{who} hold different parameters; {WAY_OUT}")
        for what, left, right in zip(("weights", "gradients"), one[1:], another[1:], strict=True):
            wrong = [index for index, pair in enumerate(zip(left, right, strict=True)) if not _agree(*pair)]
            if wrong:
                shape = tuple(parameters[wrong[0]].shape)
                raise ReplicasDisagree(
                    f"{who} have different {what} ({len(wrong)} of {len(left)} tensors, the first of shape {shape}), "
                    f"so they are not copies of one model; {WAY_OUT}"
                )


def is_sharded(parameters: Sequence[Tensor]) -> bool:
    """Return whether weights are sharded over ranks, so that a backward pass leaves gradients of all ranks' rows."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


@contextmanager
def without_gradient_averaging() -> Iterator[None]:
    """Keep DDP models from averaging gradients of forward passes that begin inside, as their ``no_sync()`` does."""
    silenced: list[DistributedDataParallel] = []

    def silence(module: nn.Module, args: Any) -> None:
        if isinstance(module, DistributedDataParallel) and module.require_backward_grad_sync:
            module.require_backward_grad_sync = False
            silenced.append(module)

    handle = register_module_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()
        for module in silenced:
            module.require_backward_grad_sync = True


def average(tensors: Sequence[Tensor], ranks: dist.ProcessGroup) -> None:
    """Replace each tensor by its mean over ranks, on which it has one shape."""
    for tensor in tensors:
        dist.all_reduce(tensor, group=ranks)
        tensor.div_(dist.get_world_size(ranks))


def gather_rows(rows: Tensor, ranks: dist.ProcessGroup) -> Tensor:
    """Gather every rank's rows ``[n, d]``, with the same n on each, one rank after another."""
    received = [torch.empty_like(rows) for _ in range(dist.get_world_size(ranks))]
    dist.all_gather(received, rows.contiguous(), group=ranks)
    return torch.cat(received)


def _sums(tensors: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[tuple[float, float] | None]:
    """Return sum and sum of squares of each tensor, over its shards; ``None`` where there is no tensor."""
    held = [(tensor, p) for tensor, p in zip(tensors, parameters, strict=True) if tensor is not None]
    if not held:
        return [None] * len(tensors)
    parts = [upcast(local_shard(tensor, p).detach()).reshape(-1) for tensor, p in held]
    device = parts[0].device
    sums = [total.to(device, torch.float64) for part in parts for total in (part.sum(), torch.dot(part, part))]
    found = iter(sum_over_shards(sums, [p for _, p in held]).reshape(-1, 2).tolist())
    return [None if tensor is None else tuple(next(found)) for tensor in tensors]


def _agree(left: tuple[float, float] | None, right: tuple[float, float] | None) -> bool:
    """Return whether two sums are those of equal tensors, up to rounding; NaN agrees with NaN."""
    if left is None or right is None:
        return left is right
    length = max(left[1], right[1]) ** 0.5
    bounds = (TOLERANCE * length, TOLERANCE * length**2)
    return all(
        repr(a) == repr(b) or isclose(a, b, rel_tol=0.0, abs_tol=bound)
        for a, b, bound in zip(left, right, bounds, strict=True)
    )

"""Weights, gradients and optimizer state sharded over ranks: torch's ``fully_shard`` (FSDP2), layer by layer.

Between steps every rank holds its shard of each weight. A training pass gathers one layer at a time, forward and
backward, and returns averaged shards of the gradient. Sampling gathers all layers once and keeps them until it is
done, since ranks decode different numbers of tokens.

A model is called in two halves (backbone, head), but FSDP2 prepares weights for the model's own forward alone.
``as_fsdp_forward`` makes any function run as that forward.

Left out: tensor, pipeline and expert parallelism, CPU offloading, and prefetching beyond FSDP2's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from heliostat.models.transformers_internals import GradientCheckpointingLayer
from heliostat.optim.distributed.sharded_tensors import full_tensor

T = TypeVar("T")
_FORWARD = "heliostat_forward"
"""The method of a sharded model that FSDP2 treats as its forward."""


def shard(model: PreTrainedModel, device: torch.device, compute_dtype: torch.dtype | None) -> None:
    """Shard every parameter of ``model`` over all ranks in place, each layer on its own and the rest together.

    Args:
        compute_dtype: the dtype of gathered weights and activations. Stored and optimized shards keep theirs, and
            gradients are averaged in float32. ``None``: one dtype throughout.

    Raises:
        ValueError: the model has no recognizable layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    reduce_dtype = None if compute_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduce_dtype)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"distributed.placement = 'sharded' shards a model layer by layer, and {type(model).__name__} has no "
            "recognized layers; use 'replicated'"
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    setattr(model, _FORWARD, MethodType(_run, model))
    register_fsdp_forward_method(model, _FORWARD)


def _run(model: nn.Module, work: Callable[[], Any]) -> Any:
    """Run ``work``, and copy a tensor result: FSDP2 attaches hooks to it, and needs a tensor that is not a view."""
    result = work()
    return result.clone() if isinstance(result, Tensor) else result


def is_sharded(model: nn.Module) -> bool:
    """Return whether ``model`` was sharded by ``shard``."""
    return hasattr(model, _FORWARD)


def as_fsdp_forward(model: nn.Module, work: Callable[[], T]) -> T:
    """Run ``work`` as the forward of a sharded model; run it directly for a whole one."""
    run: Callable[[Callable[[], T]], T] = getattr(model, _FORWARD, _directly)
    return run(work)


def _directly(work: Callable[[], T]) -> T:
    return work()


def full_state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """Gather a sharded model's state dict on the CPU, tied tensors shared; ``None`` where nothing is sharded.

    All ranks call it together; the main rank gets the tensors, and the others empty ones.
    """
    if not is_sharded(model):
        return None
    found: dict[int, Tensor] = {}
    names = dict(model.named_parameters(remove_duplicate=False))
    names |= {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    for tensor in names.values():
        if id(tensor) not in found:
            full = full_tensor(tensor.detach())
            found[id(tensor)] = full.cpu() if torch.distributed.get_rank() == 0 else full[:0]
    return {name: found[id(tensor)] for name, tensor in names.items()}


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather whole weights on every rank inside the block; ranks enter and leave together, and do not train there."""
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    shards: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    shards[0].set_reshard_after_forward(False)
    with torch.no_grad():
        as_fsdp_forward(model, lambda: None)  # initializes torch's root module and gathers it
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        shards[0].set_reshard_after_forward(True)
        for module in shards:
            module.reshard()

"""Weights, gradients and optimizer state cut over ranks: torch's ``fully_shard`` (FSDP2), layer by layer.

Between steps every rank holds its part of each weight. A training pass gathers one layer at a time, forward and
backward, and hands the gradient's parts back averaged. Sampling gathers all layers once and keeps them until it is
done, since ranks decode different numbers of tokens.

A model is called in two halves (backbone, head), but FSDP2 prepares weights for the model's own forward alone.
``as_fsdp_forward`` makes any function count as that forward.

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
"""The method of a cut model under which FSDP2 lets anything run."""


def shard(model: PreTrainedModel, device: torch.device, compute_dtype: torch.dtype | None) -> None:
    """Cut every parameter of ``model`` over all ranks, each layer on its own and the rest together, in place.

    Args:
        compute_dtype: gathered weights and activations have this type, while the parts that are stored and stepped keep
            theirs and gradients are averaged in float32; ``None``: one type throughout.

    Raises:
        ValueError: the model has no layers that can be told apart.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    reduce_dtype = None if compute_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduce_dtype)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"distributed.placement = 'sharded' cuts a model layer by layer, and {type(model).__name__} has no layers "
            "that can be told apart; use 'replicated'"
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    setattr(model, _FORWARD, MethodType(_run, model))
    register_fsdp_forward_method(model, _FORWARD)


def _run(model: nn.Module, work: Callable[[], Any]) -> Any:
    """``work``, whose result FSDP2 must be able to hang its hooks on: a tensor of its own, not a view."""
    result = work()
    return result.clone() if isinstance(result, Tensor) else result


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` has been here."""
    return hasattr(model, _FORWARD)


def as_fsdp_forward(model: nn.Module, work: Callable[[], T]) -> T:
    """Run ``work`` as if it were the model's forward; of a model that is not cut, just run it."""
    run: Callable[[Callable[[], T]], T] = getattr(model, _FORWARD, _plainly)
    return run(work)


def _plainly(work: Callable[[], T]) -> T:
    return work()


def full_state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """The state of a cut model with whole tensors, tied ones shared, in memory of the CPU; ``None`` of a whole model.

    All ranks call it together, and the main one gets the tensors.
    """
    if not is_sharded(model):
        return None
    found: dict[int, Tensor] = {}
    names = dict(model.named_parameters(remove_duplicate=False))
    names |= {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    for tensor in names.values():
        if id(tensor) not in found:
            gathered_here = full_tensor(tensor.detach())
            found[id(tensor)] = gathered_here.cpu() if torch.distributed.get_rank() == 0 else gathered_here[:0]
    return {name: found[id(tensor)] for name, tensor in names.items()}


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank while inside; all ranks enter and leave together, and do not train meanwhile."""
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    cut: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    cut[0].set_reshard_after_forward(False)
    with torch.no_grad():
        as_fsdp_forward(model, lambda: None)  # tells torch which module is the root, and gathers that one
    for module in cut:
        module.unshard()
    try:
        yield
    finally:
        cut[0].set_reshard_after_forward(True)
        for module in cut:
            module.reshard()

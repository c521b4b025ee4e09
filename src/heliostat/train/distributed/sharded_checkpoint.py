"""Weights and optimizer state of a sharded run on disk: every rank writes its shard, any number of ranks reads them.

torch's distributed checkpoint (DCP) holds the tensors. Next to it, ``skeleton.pt`` holds the optimizer's state with a
description in place of each tensor, since DCP reads into tensors that exist and a fresh optimizer has none.

Left out: when to write, and whether a checkpoint is complete (``train.run_folder.checkpoints``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard, zeros

from heliostat.optim.distributed.sharded_tensors import distribute

SKELETON = "skeleton.pt"


def write_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, is_main: bool) -> None:
    """Write ``model``'s trainable weights and ``optimizer``'s state; all ranks call it together.

    Raises:
        OSError: writing failed on some rank.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in held(model).items()}

    def describe(tensor: Tensor) -> dict[str, Any]:
        key = f"optimizer.{len(tensors)}"
        tensors[key] = tensor
        return {"tensor": key, "shape": list(tensor.shape), "dtype": tensor.dtype, "cut": isinstance(tensor, DTensor)}

    skeleton = _map(optimizer.state_dict(), lambda leaf: describe(leaf) if isinstance(leaf, Tensor) else leaf)
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder, sync_files=True))
    except CheckpointException as error:
        raise OSError(f"writing shards failed on rank {_first(error)}") from error
    if is_main:
        torch.save(skeleton, folder / SKELETON)


def read_shards(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Load weights in place, and return the optimizer's state, sharded like the weights here (or whole, on one rank).

    Raises:
        ValueError: the checkpoint is of another model.
        OSError: the checkpoint cannot be read.
    """
    weights = held(model)
    like = next((tensor for tensor in weights.values() if isinstance(tensor, DTensor)), None)
    targets: dict[str, Tensor] = {}

    def allocate(leaf: Any) -> Any:
        if not (isinstance(leaf, Mapping) and "tensor" in leaf):
            return leaf
        shape, dtype = leaf["shape"], leaf["dtype"]
        if leaf["cut"] and like is not None:
            target: Tensor = zeros(*shape, dtype=dtype, device_mesh=like.device_mesh, placements=[Shard(0)])
        else:
            target = torch.zeros(shape, dtype=dtype)
        targets[leaf["tensor"]] = target
        return target

    state: dict[str, Any] = _map(torch.load(folder / SKELETON, weights_only=True), allocate)
    stored = {key for key in FileSystemReader(folder).read_metadata().state_dict_metadata if key[:6] == "model."}
    if stored != {f"model.{name}" for name in weights}:
        raise ValueError("it is of another model")
    targets |= {f"model.{name}": tensor.detach() for name, tensor in weights.items()}
    try:
        load(dict(targets), storage_reader=FileSystemReader(folder), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise OSError(f"reading shards failed on rank {_first(error)}") from error
    return state


def held(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's trainable weights for a checkpoint, tied ones once; frozen ones stay where they came from."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Shard a whole tensor like ``weight``; return it as it is where that is whole or has another shape."""
    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return tensor
    return distribute(tensor.to(weight.device), weight)


def shard_state(state: Any, parameters: list[Tensor], whole: frozenset[str]) -> Any:
    """Shard an optimizer's whole state like its parameters; all ranks keep the entries named in ``whole``."""
    ids = [index for group in state["param_groups"] for index in group["params"]]
    parameter_of = dict(zip(ids, parameters, strict=True))
    sharded = {
        index: {
            key: shard_like(value, parameter_of[index]) if isinstance(value, Tensor) and key not in whole else value
            for key, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    return {**state, "state": sharded}


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to every leaf, and to every description in place of one."""
    if isinstance(tree, Mapping) and "tensor" not in tree:
        return {key: _map(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(value, change) for value in tree)
    return change(tree)


def _first(error: Any) -> str:
    """Describe the failure of the first rank that failed."""
    rank, (failure, _) = next(iter(sorted(error.failures.items())))
    return f"{rank}: {failure}"

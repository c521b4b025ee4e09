"""Files of a checkpoint: written from a model and its optimizer, and loaded into them.

    model.safetensors  optimizer.pt     weights and optimizer state, whole
    shards/                             both, of a run with sharded weights (``train.distributed.sharded_checkpoint``)
    state.json                          everything else that is a plain value
    rollouts.pt                         rollouts of later steps, if there are any (``train.rollouts.batch``)

The ``.pt`` files hold tensors and plain values only and are read back weights-only.

Left out: detecting damaged files (``checkpoint_folder``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from heliostat.storage import Damaged
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.distributed.sharded_checkpoint import SKELETON, read_shards, shard_like, shard_state, write_shards
from heliostat.train.run_folder.stored_dtype import NAMES, stored_dtype, trained_dtype

WEIGHTS, OPTIMIZER, SHARDS, STATE, ROLLOUTS = (
    *("model.safetensors", "optimizer.pt", "shards"),
    *("state.json", "rollouts.pt"),
)
HAS_MANIFEST = "has_manifest"
"""Key of a state whose manifest is written after it; without the manifest, the checkpoint is damaged."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it and the checkpoints that are intact."""


def write_weights(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime) -> None:
    """Write weights and optimizer state; all ranks call it together.

    Raises:
        OSError, SafetensorError: some rank's disk refused.
    """
    if runtime.sharded:
        write_shards(folder / SHARDS, model, optimizer, runtime.is_main)
    elif runtime.is_main:
        save_file(_unique_tensors(model), folder / WEIGHTS)
        torch.save(optimizer.state_dict(), folder / OPTIMIZER)


def write_rest(folder: Path, state: Mapping[str, Any], rollouts: Sequence[dict[str, Any]]) -> None:
    """Write plain values and the rollouts of later steps.

    Raises:
        OSError: the disk refused.
    """
    if rollouts:
        torch.save(list(rollouts), folder / ROLLOUTS)
    (folder / STATE).write_text(json.dumps({**state, HAS_MANIFEST: True}), encoding="utf-8")


def read_files(
    folder: Path, files: Collection[str], model: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> dict[str, Any]:
    """Load weights and optimizer state in place, and return the other state, with its ``rollouts``.

    Args:
        files: names of the files that belong to the checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another model, or its weights have another dtype.
        Exception: a file cannot be read; the type depends on the library that reads it.
    """
    _check_dtype(folder, model)
    is_whole = OPTIMIZER in files
    if is_whole:
        tensors = load_file(folder / WEIGHTS)
        optimizer_state = torch.load(folder / OPTIMIZER, weights_only=True)
    else:
        optimizer_state = read_shards(folder / SHARDS, model)
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    state["rollouts"] = torch.load(folder / ROLLOUTS, weights_only=True) if ROLLOUTS in files else []
    if is_whole:
        wrong = _put(tensors, model)
        if wrong:
            raise CheckpointError(f"checkpoint {folder} is of another model: {wrong[:3]} do not match")
        if runtime.sharded:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            whole: frozenset[str] = getattr(optimizer, "whole_state", frozenset())
            optimizer_state = shard_state(optimizer_state, parameters, whole)
    optimizer.load_state_dict(optimizer_state)
    state.pop(HAS_MANIFEST, None)
    return state


def read_whole(folder: Path) -> None:
    """Read every file of a checkpoint without digests, as far as possible without a model.

    Raises:
        Damaged: a file is missing or cannot be read.
    """
    path = folder / STATE
    try:
        json.loads(path.read_text(encoding="utf-8"))
        if (folder / SHARDS).is_dir():
            path = folder / SHARDS
            FileSystemReader(path).read_metadata()
            torch.load(path / SKELETON, weights_only=True)
        else:
            path = folder / WEIGHTS
            load_file(path)
            path = folder / OPTIMIZER
            torch.load(path, weights_only=True)
        path = folder / ROLLOUTS
        if path.exists():
            torch.load(path, weights_only=True)
    except Exception as error:  # its type depends on the library that reads the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Damaged(f"{path} cannot be read ({reason})") from None


def _check_dtype(folder: Path, model: nn.Module) -> None:
    stored, here = stored_dtype(folder), trained_dtype(model)
    if stored in NAMES and here in NAMES and stored != here:
        raise CheckpointError(
            f"checkpoint {folder} holds {NAMES[stored]} weights, but this model has {NAMES[here]} weights; continue "
            f"with model.dtype = '{NAMES[stored]}', or start another run in another folder"
        )


def _unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without frozen weights and second names of tied ones; safetensors refuses shared memory."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    seen: set[int] = set()
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in frozen or (tensor.data_ptr() in seen and tensor.numel()):
            continue
        seen.add(tensor.data_ptr())
        unique[name] = tensor.contiguous()
    return unique


def _put(tensors: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    """Load stored weights into ``model``; return the names that are unexpected or missing."""
    own = dict(model.named_parameters())
    sharded = {name: shard_like(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(sharded, strict=False)
    wanted = {name for name, parameter in own.items() if parameter.requires_grad} | dict(model.named_buffers()).keys()
    return [*(name for name in missing if name in wanted), *unexpected]

"""Checkpoints: complete or absent, never half; the newest few are kept.

A checkpoint is a folder ``step_000120`` with ``model.safetensors``, ``optimizer.pt`` (tensors and plain values only,
read back weights-only), ``state.json``, and ``rollouts.pt`` where rollouts of coming steps exist (``train.rollouts``);
a run with sharded weights has ``shards/`` in place of the first two. It is written beside its place and renamed
into it, so that a killed process or a full disk leaves the previous one intact. Either kind is read by any
number of ranks.

Left out: the inside of ``shards/`` (``train.shards``), and random number state: every draw of a run is derived from its
seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from heliostat.train.precision import NAMES, stored_dtype, trained_dtype
from heliostat.train.runtime import RankLost, Runtime
from heliostat.train.shards import cut_like, cut_state, read_shards, write_shards

PARTIAL = ".partial"
"""Ending of a folder that is being written."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what is still good."""


class Checkpoints:
    """The checkpoint folder of one run; ranks save and load together, and the main one makes and removes folders."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder = folder
        self.keep = keep
        self.runtime = runtime
        for leftover in folder.glob(f"step_*{PARTIAL}") if runtime.is_main else ():
            if _step_of(leftover.name.removesuffix(PARTIAL)) is not None:
                shutil.rmtree(leftover)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first; one that is being written is none."""
        found = [_step_of(path.name) for path in self.folder.glob("step_*") if path.is_dir()]
        return sorted(step for step in found if step is not None)

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        rollouts: Sequence[dict[str, Any]] = (),
    ) -> Path:
        """Write a checkpoint, then drop the oldest beyond ``keep``.

        Args:
            rollouts: of coming steps, as tensors and plain values.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        final = self._path(step)
        partial = final.with_name(final.name + PARTIAL)
        try:
            with self.runtime.together():
                if self.runtime.is_main:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
            with self.runtime.together():
                if self.runtime.sharded:
                    write_shards(partial / "shards", model, optimizer, self.runtime.is_main)
                elif self.runtime.is_main:
                    save_file(_unique_tensors(model), partial / "model.safetensors")
                    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            with self.runtime.together():
                if self.runtime.is_main:
                    if rollouts:
                        torch.save(list(rollouts), partial / "rollouts.pt")
                    _publish(partial, final, state | {"step": step})
        except RankLost:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.runtime.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            good = f"the checkpoint of step {self.steps()[-1]} is intact" if self.steps() else "there is none yet"
            raise CheckpointError(f"could not write checkpoint {final} ({error}); {good}") from error
        for old in self.steps()[: -self.keep] if self.runtime.is_main else ():
            shutil.rmtree(self._path(old))
        return final

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint's weights and optimizer state into place and return its ``state``, with its ``rollouts``.

        Raises:
            CheckpointError: it cannot be read, or is of another model, or of weights of another type.
        """
        folder = self._path(step)
        self._check_dtype(folder, model)
        try:
            if (folder / "shards").is_dir():
                optimizer_state = read_shards(folder / "shards", model)
            else:
                tensors = load_file(folder / "model.safetensors")
                optimizer_state = torch.load(folder / "optimizer.pt", weights_only=True)
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            coming = folder / "rollouts.pt"
            state["rollouts"] = torch.load(coming, weights_only=True) if coming.exists() else []
        except RankLost:
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot read checkpoint {folder} ({error}); remove that folder to continue from an earlier one"
            ) from error
        if not (folder / "shards").is_dir():
            wrong = _put(tensors, model)
            if wrong:
                raise CheckpointError(f"checkpoint {folder} is of another model: {wrong[:3]} do not match")
            if self.runtime.sharded:
                parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                whole: frozenset[str] = getattr(optimizer, "whole_state", frozenset())
                optimizer_state = cut_state(optimizer_state, parameters, whole)
        optimizer.load_state_dict(optimizer_state)
        return state

    def stored_dtype(self, step: int | None) -> torch.dtype | None:
        """The type of the weights in a checkpoint; ``None`` without one, or where that cannot be told."""
        return None if step is None else stored_dtype(self._path(step))

    def _check_dtype(self, folder: Path, model: nn.Module) -> None:
        stored, here = stored_dtype(folder), trained_dtype(model)
        if stored in NAMES and here in NAMES and stored != here:
            raise CheckpointError(
                f"checkpoint {folder} holds {NAMES[stored]} weights, and this model's are {NAMES[here]}; continue it "
                f"with model.dtype = '{NAMES[stored]}', or begin another run in another folder"
            )

    def drop_after(self, step: int) -> None:
        """Remove every checkpoint newer than ``step``."""
        for newer in [other for other in self.steps() if other > step] if self.runtime.is_main else []:
            shutil.rmtree(self._path(newer))

    def _path(self, step: int) -> Path:
        return self.folder / _name(step)


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _step_of(name: str) -> int | None:
    """The step that a folder's name says, or ``None`` for a name that ``_name`` does not write."""
    with suppress(ValueError):
        step = int(name.removeprefix("step_"))
        return step if name == _name(step) else None
    return None


def _unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without second names of tied weights (safetensors refuses shared memory) and frozen weights."""
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
    """Stored weights in their places; returns the names that have none, or lack a weight."""
    own = dict(model.named_parameters())
    cut = {name: cut_like(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(cut, strict=False)
    wanted = {name for name, parameter in own.items() if parameter.requires_grad} | dict(model.named_buffers()).keys()
    return [*(name for name in missing if name in wanted), *unexpected]


def _publish(partial: Path, final: Path, state: dict[str, Any]) -> None:
    """Add the state, force everything to the disk, and put the folder in its place."""
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    _sync(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def _sync(folder: Path) -> None:
    """Force files to the disk before the rename that publishes them."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())

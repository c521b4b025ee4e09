"""Checkpoints: complete or absent, never half; the newest few are kept.

A checkpoint is a folder ``step_000120`` with ``model.safetensors``, ``optimizer.pt`` (tensors and plain values only,
read back weights-only) and ``state.json``. It is written beside its place and renamed into it, so that a killed process
or a full disk leaves the previous one intact.

Left out: sharded checkpoints, and random number state: every draw of a run is derived from its seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what is still good."""


class Checkpoints:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*") if path.is_dir())

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then drop the oldest beyond ``keep``.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        final = self._path(step)
        partial = final.with_name(final.name + ".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_unique_tensors(model), partial / "model.safetensors")
            torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            (partial / "state.json").write_text(json.dumps(state | {"step": step}), encoding="utf-8")
            _sync(partial)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            good = f"the checkpoint of step {self.steps()[-1]} is intact" if self.steps() else "there is none yet"
            raise CheckpointError(f"could not write checkpoint {final} ({error}); {good}") from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old))
        return final

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint's weights and optimizer state into place and return its ``state``."""
        folder = self._path(step)
        try:
            tensors = load_file(folder / "model.safetensors")
            optimizer_state = torch.load(folder / "optimizer.pt", weights_only=True)
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except Exception as error:
            raise CheckpointError(
                f"cannot read checkpoint {folder} ({error}); remove that folder to continue from an earlier one"
            ) from error
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = set(model.state_dict()) - set(_unique_tensors(model))
        if unexpected or set(missing) - tied:
            raise CheckpointError(
                f"checkpoint {folder} is of another model: {[*missing, *unexpected][:3]} do not match"
            )
        optimizer.load_state_dict(optimizer_state)
        return state

    def drop_after(self, step: int) -> None:
        """Remove every checkpoint newer than ``step``."""
        for newer in [other for other in self.steps() if other > step]:
            shutil.rmtree(self._path(newer))

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"


def _unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without second names of tied weights (safetensors refuses shared memory)."""
    seen: set[int] = set()
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        unique[name] = tensor.contiguous()
    return unique


def _sync(folder: Path) -> None:
    """Force files to the disk before the rename that publishes them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())

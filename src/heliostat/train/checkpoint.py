"""Checkpoints: complete or absent, checked before they are used; the newest few are kept.

A checkpoint is a folder ``step_000120`` with ``model.safetensors``, ``optimizer.pt`` (tensors and plain values only,
read back weights-only), ``state.json``, and ``rollouts.pt`` where rollouts of coming steps exist (``train.rollouts``);
a run with sharded weights has ``shards/`` in place of the first two. Its ``manifest.json`` has the digest of every
file, the step, how many checkpoints the run had written before it, and how far the run's logs went. It is published
whole (``storage.folders``). Either kind is read by any number of ranks.

The newest checkpoint is the one that was written last, not the one with the highest step: after a rollback the
checkpoint that the run went back to is written again, and from then on later steps are obsolete.

Left out: the inside of ``shards/`` (``train.shards``), and random number state: every draw of a run is derived from its
seed and step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from heliostat.storage import (
    Damaged,
    Extent,
    FolderDraft,
    StorageError,
    check_folder,
    read_manifest,
    recover_folder,
    remove_folder,
    write_manifest,
)
from heliostat.storage.folders import ENDINGS, partial_of
from heliostat.train.precision import NAMES, stored_dtype, trained_dtype
from heliostat.train.runtime import RankLost, Runtime
from heliostat.train.shards import cut_like, cut_state, read_shards, write_shards

WRITING_FAILURES = (OSError, RuntimeError, SafetensorError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what is still good."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run can continue.

    Attributes:
        step: of the newest intact checkpoint; ``None`` where there is no checkpoint at all.
        logs: how far each log went when it was written.
        losses: one sentence for each newer checkpoint that is damaged.
        is_intact: whether it can be loaded; where there are checkpoints and all are damaged, ``step`` is the last one.
    """

    step: int | None
    logs: Mapping[str, Extent] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    is_intact: bool = True


class Checkpoints:
    """The checkpoint folder of one run; ranks save and load together, and the main one makes and removes folders."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder = folder
        self.keep = keep
        self.runtime = runtime
        self._point: ResumePoint | None = None
        self._just_checked: int | None = None
        if runtime.is_main:
            for path in _left_behind(folder):
                recover_folder(path)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, lowest first; one that is being written, a link or a copy is none."""
        found = [_step_of(path.name) for path in self.folder.glob("step_*") if path.is_dir() and not path.is_symlink()]
        return sorted(step for step in found if step is not None)

    @property
    def latest(self) -> int | None:
        """Step of the checkpoint that the run continues from."""
        return max(self.steps(), default=None) if self._point is None else self._point.step

    def find_newest(self) -> ResumePoint:
        """Find the newest intact checkpoint, and remove those that it made obsolete; all ranks call it together."""
        self._point = self.runtime.led(self._find_newest)
        return self._point

    def _find_newest(self) -> ResumePoint:
        ages: dict[int, int] = {}
        damaged: dict[int, str] = {}
        for step in self.steps():
            try:
                ages[step] = _about(self._path(step), step)["number"]
            except Damaged as error:
                damaged[step] = str(error)
        for step in sorted(ages, key=ages.__getitem__, reverse=True):
            try:
                about = self._check(step)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            for other, age in ages.items():
                if other > step and age < ages[step]:
                    remove_folder(self._path(other))
            self._just_checked = step
            lost = [f"a checkpoint is lost: {why}; step {step} is intact" for at, why in damaged.items() if at >= step]
            if not lost:  # else they stay to be looked at, until the next checkpoint is written
                self._prune(step)
            return ResumePoint(step, {name: Extent.from_json(one) for name, one in about["logs"].items()}, tuple(lost))
        return ResumePoint(max(damaged, default=None), is_intact=not damaged)

    def intact(self) -> list[int]:
        """Steps of the checkpoints that can be gone back to, lowest first; all ranks call it together."""
        return self.runtime.led(self._intact)

    def _intact(self) -> list[int]:
        good = []
        for step in self.steps():
            with suppress(Damaged):
                self._check(step)
                good.append(step)
        return good

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        rollouts: Sequence[dict[str, Any]] = (),
        logs: Mapping[str, Extent] | None = None,
    ) -> Path:
        """Write a checkpoint, then drop those of later steps, which it makes obsolete, and the oldest beyond ``keep``.

        Args:
            rollouts: of coming steps, as tensors and plain values.
            logs: how far the run's logs go, by name.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        final = self._path(step)
        draft: FolderDraft | None = None
        try:
            with self.runtime.together():
                if self.runtime.is_main:
                    draft = FolderDraft(final)
            with self.runtime.together():
                self._write_weights(partial_of(final), model, optimizer)
            with self.runtime.together():
                if draft is not None:
                    self._write_rest(draft.path, state | {"step": step}, rollouts, step, logs or {})
                    draft.publish()
            with self.runtime.together():
                self._prune(step)
        except RankLost:
            raise
        except WRITING_FAILURES as error:
            good = f"the checkpoint of step {self.steps()[-1]} is intact" if self.steps() else "there is none yet"
            raise CheckpointError(f"could not write checkpoint {final} ({_reason(error)}); {good}") from error
        finally:
            if draft is not None:
                draft.discard()  # nothing is left of it once it is published
        return final

    def _write_weights(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.runtime.sharded:
            write_shards(folder / "shards", model, optimizer, self.runtime.is_main)
        elif self.runtime.is_main:
            save_file(_unique_tensors(model), folder / "model.safetensors")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")

    def _write_rest(
        self,
        folder: Path,
        state: dict[str, Any],
        rollouts: Sequence[dict[str, Any]],
        step: int,
        logs: Mapping[str, Extent],
    ) -> None:
        if rollouts:
            torch.save(list(rollouts), folder / "rollouts.pt")
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        number = 0
        for other in self.steps():
            with suppress(Damaged):
                number = max(number, _about(self._path(other), other)["number"] + 1)
        write_manifest(
            folder, {"step": step, "number": number, "logs": {name: one.to_json() for name, one in logs.items()}}
        )

    def _prune(self, step: int) -> None:
        if not self.runtime.is_main:
            return
        self.drop_after(step)
        kept = [other for other in self.steps() if _is_readable(self._path(other), other)]
        for other in set(self.steps()) - set(kept[-self.keep :]):
            remove_folder(self._path(other))

    def drop_after(self, step: int) -> None:
        """Remove every checkpoint of a later step than ``step``."""
        for later in [other for other in self.steps() if other > step] if self.runtime.is_main else []:
            remove_folder(self._path(later))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint's weights and optimizer state into place and return its ``state``, with its ``rollouts``.

        Raises:
            CheckpointError: a file of it is not what was written, or it is of another model, or of another type.
        """
        folder = self._path(step)
        try:
            files = self.runtime.led(lambda: self._checked_files(step))
            self._check_dtype(folder, model)
            if "optimizer.pt" in files:
                tensors = load_file(folder / "model.safetensors")
                optimizer_state = torch.load(folder / "optimizer.pt", weights_only=True)
            else:
                optimizer_state = read_shards(folder / "shards", model)
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            coming = folder / "rollouts.pt"
            state["rollouts"] = torch.load(coming, weights_only=True) if coming.name in files else []
        except (RankLost, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot read checkpoint {folder} ({error}); remove that folder to continue from an earlier one"
            ) from error
        if "optimizer.pt" in files:
            wrong = _put(tensors, model)
            if wrong:
                raise CheckpointError(f"checkpoint {folder} is of another model: {wrong[:3]} do not match")
            if self.runtime.sharded:
                parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                whole: frozenset[str] = getattr(optimizer, "whole_state", frozenset())
                optimizer_state = cut_state(optimizer_state, parameters, whole)
        optimizer.load_state_dict(optimizer_state)
        return state

    def _checked_files(self, step: int) -> frozenset[str]:
        """Names of a checkpoint's files, compared with their digests unless that was done just now."""
        fresh, self._just_checked = self._just_checked == step, None
        if not fresh:
            self._check(step)
        return frozenset(read_manifest(self._path(step))["files"])

    def _check(self, step: int) -> dict[str, Any]:
        """Compare every file with its digest, and the folder's name with the step inside; returns ``about``."""
        folder = self._path(step)
        about = _about(folder, step)
        check_folder(folder)
        return about

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

    def _path(self, step: int) -> Path:
        return self.folder / _name(step)


def reference_is_intact(folder: Path, step: int) -> bool:
    """Whether the frozen reference policy is what was written; at step 0 it can be written again.

    Raises:
        CheckpointError: it is not, and the weights at hand are trained ones, which must not take its place.
    """
    try:
        check_folder(folder)
    except Damaged as error:
        if step == 0:
            return False
        raise CheckpointError(
            f"the reference policy is lost ({error}), and the weights of step 0 are gone; restore {folder}, or start "
            "anew with another --run"
        ) from error
    return True


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _step_of(name: str) -> int | None:
    """The step that a folder's name says, or ``None`` for a name that ``_name`` does not write."""
    with suppress(ValueError):
        step = int(name.removeprefix("step_"))
        return step if name == _name(step) else None
    return None


def _left_behind(folder: Path) -> list[Path]:
    """Checkpoints of which a killed process left something behind."""
    found = {path.with_suffix("") for ending in ENDINGS for path in folder.glob(f"step_*{ending}")}
    return sorted(path for path in found if _step_of(path.name) is not None)


def _about(folder: Path, step: int) -> dict[str, Any]:
    """What a checkpoint's manifest says of it.

    Raises:
        Damaged: the manifest cannot be read, or is that of another step.
    """
    about: dict[str, Any] = read_manifest(folder)["about"]
    if about["step"] != step:
        raise Damaged(f"{folder} holds the checkpoint of step {about['step']}: folders were renamed or exchanged")
    return about


def _is_readable(folder: Path, step: int) -> bool:
    try:
        _about(folder, step)
    except Damaged:
        return False
    return True


def _reason(error: BaseException) -> str:
    """Why the disk refused, in the system's words where there are some."""
    cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
    return str(cause)


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

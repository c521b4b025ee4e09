"""The checkpoints of a run: published atomically, checked before use, and limited to the newest few.

A checkpoint is a folder ``step_000120`` (``checkpoint_folder``) that is published whole (``storage.folders``). It is
read by any number of ranks, independent of the number that wrote it.

The newest checkpoint is the one that was written last, not the one with the highest step: after a rollback the
checkpoint that the run went back to is written again, and from then on later steps are obsolete.

Left out: the contents of its files (``checkpoint_files``), and random number state, since every draw of a run is
derived from its seed and step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from heliostat.storage import Damaged, Extent, FolderDraft, recover_folder, remove_folder
from heliostat.storage.errors import reason_of
from heliostat.storage.folders import partial_of
from heliostat.train.distributed.ranks import RankLost, Runtime
from heliostat.train.run_folder.checkpoint_files import CheckpointError, read_files, write_rest, write_weights
from heliostat.train.run_folder.checkpoint_folder import (
    About,
    check,
    describe,
    left_behind,
    name_of,
    read_about,
    step_of,
    unchecked,
)
from heliostat.train.run_folder.stored_dtype import stored_dtype

WRITING_FAILURES = (OSError, RuntimeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The checkpoint that a run continues from.

    Attributes:
        step: of the newest intact checkpoint; ``None`` if there is no checkpoint.
        logs: the extent of each log when it was written.
        losses: one sentence for each newer checkpoint that is damaged, and one if this one has no digests.
        is_intact: whether it can be loaded. If all checkpoints are damaged, ``step`` is the highest one.
    """

    step: int | None
    logs: Mapping[str, Extent] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    is_intact: bool = True


class Checkpoints:
    """The checkpoint folder of one run. Ranks save and load together; the main rank creates and removes folders."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder = folder
        self.keep = keep
        self.runtime = runtime
        self._point: ResumePoint | None = None
        self._just_checked: int | None = None
        if runtime.is_main:
            for path in left_behind(folder):
                recover_folder(path)

    def steps(self) -> list[int]:
        """List the steps of the complete checkpoints, lowest first; partial ones, links and copies are ignored."""
        found = [step_of(path.name) for path in self.folder.glob("step_*") if path.is_dir() and not path.is_symlink()]
        return sorted(step for step in found if step is not None)

    @property
    def latest(self) -> int | None:
        """The step of the checkpoint that the run continues from."""
        return max(self.steps(), default=None) if self._point is None else self._point.step

    def find_newest(self) -> ResumePoint:
        """Find the newest intact checkpoint, and remove those that it made obsolete; all ranks call it together."""
        self._point = self.runtime.run_on_main(self._find_newest)
        return self._point

    def _find_newest(self) -> ResumePoint:
        ages: dict[int, tuple[int, int]] = {}
        damaged: dict[int, str] = {}
        for step in self.steps():
            try:
                ages[step] = read_about(self.path_of(step), step).age
            except Damaged as error:
                damaged[step] = str(error)
        for step in sorted(ages, key=ages.__getitem__, reverse=True):
            try:
                about = check(self.path_of(step), step)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            for other, age in ages.items():
                if other > step and age < ages[step]:
                    remove_folder(self.path_of(other))
            self._just_checked = step
            lost = [f"a checkpoint is lost: {why}; step {step} is intact" for at, why in damaged.items() if at >= step]
            if not lost:  # damaged checkpoints stay for inspection until the next one is written
                self._prune(step)
            notes = [] if about.is_checked else [unchecked(self.path_of(step))]
            return ResumePoint(step, about.logs, (*lost, *notes))
        return ResumePoint(max(damaged, default=None), is_intact=not damaged)

    def intact(self) -> list[int]:
        """List the steps of the intact checkpoints, lowest first; all ranks call it together."""
        return self.runtime.run_on_main(self._intact)

    def _intact(self) -> list[int]:
        good = []
        for step in self.steps():
            with suppress(Damaged):
                check(self.path_of(step), step)
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
        """Write a checkpoint, then remove the obsolete ones of later steps, and the oldest beyond ``keep``.

        Args:
            rollouts: rollouts of later steps, as tensors and plain values.
            logs: the extents of the run's logs, by name.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        final = self.path_of(step)
        draft: FolderDraft | None = None
        try:
            with self.runtime.raise_on_all_ranks():
                if self.runtime.is_main:
                    draft = FolderDraft(final)
            with self.runtime.raise_on_all_ranks():
                write_weights(partial_of(final), model, optimizer, self.runtime)
            with self.runtime.raise_on_all_ranks():
                if draft is not None:
                    write_rest(draft.path, state | {"step": step}, rollouts)
                    describe(draft.path, step, self._next_number(), logs or {})
                    draft.publish()
            with self.runtime.raise_on_all_ranks():
                self._prune(step)
        except RankLost:
            raise
        except WRITING_FAILURES as error:
            good = f"the checkpoint of step {self.steps()[-1]} is intact" if self.steps() else "there is none yet"
            raise CheckpointError(f"could not write checkpoint {final} ({reason_of(error)}); {good}") from error
        finally:
            if draft is not None:
                draft.discard()  # does nothing after publication
        return final

    def _next_number(self) -> int:
        """Count the checkpoints that the run has written, from the numbers in those that are left."""
        number = 0
        for step in self.steps():
            with suppress(Damaged):
                number = max(number, read_about(self.path_of(step), step).number + 1)
        return number

    def _prune(self, step: int) -> None:
        if not self.runtime.is_main:
            return
        self.drop_after(step)
        kept = [other for other in self.steps() if _is_readable(self.path_of(other), other)]
        for other in set(self.steps()) - set(kept[-self.keep :]):
            remove_folder(self.path_of(other))

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of steps after ``step``."""
        for later in [other for other in self.steps() if other > step] if self.runtime.is_main else []:
            remove_folder(self.path_of(later))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Load a checkpoint's weights and optimizer state in place, and return its ``state``, with its ``rollouts``.

        Raises:
            CheckpointError: a file is damaged, or the checkpoint is of another model or dtype.
        """
        folder = self.path_of(step)
        try:
            files = self.runtime.run_on_main(lambda: self._checked(step)).files
            return read_files(folder, files, model, optimizer, self.runtime)
        except (RankLost, CheckpointError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot read checkpoint {folder} ({error}); remove that folder to continue from an earlier one"
            ) from error

    def _checked(self, step: int) -> About:
        """Return a checkpoint's description; compare its files with their digests unless that was done just before."""
        fresh, self._just_checked = self._just_checked == step, None
        return (read_about if fresh else check)(self.path_of(step), step)

    def stored_dtype(self, step: int | None) -> torch.dtype | None:
        """Return the dtype of a checkpoint's weights; ``None`` without a checkpoint, or where it cannot be told."""
        return None if step is None else stored_dtype(self.path_of(step))

    def path_of(self, step: int) -> Path:
        return self.folder / name_of(step)


def _is_readable(folder: Path, step: int) -> bool:
    with suppress(Damaged):
        read_about(folder, step)
        return True
    return False

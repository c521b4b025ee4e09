"""The folder of one checkpoint: its name, its manifest, and the check that its files are as they were written.

``manifest.json`` has the digest of every file, the step, the number of checkpoints that the run had written before, and
the extents of the run's logs. A checkpoint of an earlier version has no manifest, and its state does not announce one.
Such a checkpoint is read completely, which detects truncated files, and used with a note that flipped bits in it would
stay undetected.

Left out: the contents of the files (``checkpoint_files``), and the choice of a checkpoint (``checkpoints``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliostat.storage import MANIFEST, Damaged, Extent, check_folder, read_manifest, write_manifest
from heliostat.storage.folders import ENDINGS
from heliostat.train.run_folder.checkpoint_files import HAS_MANIFEST, STATE, read_whole


@dataclass(frozen=True, slots=True)
class About:
    """The description of a checkpoint.

    Attributes:
        step: of the run.
        number: of checkpoints that the run had written before; -1 for checkpoints of earlier versions.
        logs: extent of each log.
        files: names of the checkpoint's files.
        is_checked: whether the files have digests.
    """

    step: int
    number: int = -1
    logs: Mapping[str, Extent] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    is_checked: bool = True

    @property
    def age(self) -> tuple[int, int]:
        """A key that grows with the time of writing; earlier versions wrote checkpoints in the order of steps."""
        return self.number, self.step


def name_of(step: int) -> str:
    """Return the folder's name for the checkpoint of ``step``."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step of a folder's name, or ``None`` if ``name_of`` gives no such name."""
    with suppress(ValueError):
        step = int(name.removeprefix("step_"))
        return step if name == name_of(step) else None
    return None


def left_behind(folder: Path) -> list[Path]:
    """List the checkpoints in ``folder`` of which a killed process left partial or replaced folders."""
    found = {path.with_suffix("") for ending in ENDINGS for path in folder.glob(f"step_*{ending}")}
    return sorted(path for path in found if step_of(path.name) is not None)


def describe(folder: Path, step: int, number: int, logs: Mapping[str, Extent]) -> None:
    """Write the manifest of a checkpoint whose other files are complete.

    Raises:
        OSError: writing failed.
    """
    write_manifest(
        folder, {"step": step, "number": number, "logs": {name: one.to_json() for name, one in logs.items()}}
    )


def read_about(folder: Path, step: int) -> About:
    """Read the description of the checkpoint of ``step``, without its other files.

    Raises:
        Damaged: the manifest is unreadable, lost, or of another step.
    """
    if not (folder / MANIFEST).exists() and _is_older(folder):
        found = _read_state(folder).get("step", step)
        about = About(found, files=frozenset(path.name for path in folder.iterdir()), is_checked=False)
    else:
        manifest = read_manifest(folder)
        content = manifest["about"]
        logs = {name: Extent.from_json(one) for name, one in content["logs"].items()}
        about = About(content["step"], content["number"], logs, frozenset(manifest["files"]))
    if about.step != step:
        raise Damaged(f"{folder} holds the checkpoint of step {about.step}: folders were renamed or exchanged")
    return about


def check(folder: Path, step: int) -> About:
    """Compare every file with its digest, and the folder's name with the step in its manifest.

    Raises:
        Damaged: a file is missing or was changed; the message names the first one.
    """
    about = read_about(folder, step)
    if about.is_checked:
        check_folder(folder)
    else:
        read_whole(folder)
    return about


def unchecked(folder: Path) -> str:
    """Build the note about a checkpoint without digests that is used."""
    return f"{folder} is of an earlier version and has no digests: it can be read, but flipped bits stay undetected"


def _is_older(folder: Path) -> bool:
    """Return whether a checkpoint without manifest is of an earlier version, which wrote none.

    Raises:
        Damaged: its state cannot be read.
    """
    return (folder / STATE).exists() and HAS_MANIFEST not in _read_state(folder)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        raise Damaged(f"{folder / STATE} cannot be read") from None
    if not isinstance(state, dict):
        raise Damaged(f"{folder / STATE} is not what was written")
    return state

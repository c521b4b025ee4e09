"""One checkpoint's folder: its name, its manifest, and the check of its files.

``manifest.json`` has the digest of every file, the step, how many checkpoints the run had written before this one, and
the extent of the run's logs. A checkpoint of an earlier version has no manifest, and its state does not mention one.
It is read whole, which detects truncated files; a note tells the user that flipped bits in it stay undetected.

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
    """A checkpoint's description of itself.

    Attributes:
        step: of the run.
        number: how many checkpoints the run had written before it; -1 for those of earlier versions.
        logs: the extent of each log.
        files: names of its files.
        is_checked: whether its files have digests.
    """

    step: int
    number: int = -1
    logs: Mapping[str, Extent] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    is_checked: bool = True

    @property
    def age(self) -> tuple[int, int]:
        """A key that grows with the time of writing; earlier versions never wrote a lower step after a higher one."""
        return self.number, self.step


def name_of(step: int) -> str:
    """Return the folder name of the checkpoint of ``step``."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """Read the step from a folder's name; ``None`` for a name that ``name_of`` does not give."""
    with suppress(ValueError):
        step = int(name.removeprefix("step_"))
        return step if name == name_of(step) else None
    return None


def left_behind(folder: Path) -> list[Path]:
    """List the checkpoints in ``folder`` of which a killed process left partial files."""
    found = {path.with_suffix("") for ending in ENDINGS for path in folder.glob(f"step_*{ending}")}
    return sorted(path for path in found if step_of(path.name) is not None)


def describe(folder: Path, step: int, number: int, logs: Mapping[str, Extent]) -> None:
    """Write the manifest of a checkpoint, after its other files.

    Raises:
        OSError: the disk refused.
    """
    write_manifest(
        folder, {"step": step, "number": number, "logs": {name: one.to_json() for name, one in logs.items()}}
    )


def read_about(folder: Path, step: int) -> About:
    """Read the description of the checkpoint of ``step``, without looking at its other files.

    Raises:
        Damaged: its manifest is lost, cannot be read, or belongs to another step.
    """
    if not (folder / MANIFEST).exists() and _is_older(folder):
        found = _read_state(folder).get("step", step)
        about = About(found, files=frozenset(path.name for path in folder.iterdir()), is_checked=False)
    else:
        manifest = read_manifest(folder)
        fields = manifest["about"]
        logs = {name: Extent.from_json(extent) for name, extent in fields["logs"].items()}
        about = About(fields["step"], fields["number"], logs, frozenset(manifest["files"]))
    if about.step != step:
        raise Damaged(f"{folder} holds the checkpoint of step {about.step}: folders were renamed or exchanged")
    return about


def check(folder: Path, step: int) -> About:
    """Compare every file with its digest, and the folder's name with the step inside.

    Raises:
        Damaged: a file is missing or its digest differs; the message names the first one.
    """
    about = read_about(folder, step)
    if about.is_checked:
        check_folder(folder)
    else:
        read_whole(folder)
    return about


def unchecked(folder: Path) -> str:
    """Describe the use of a checkpoint without digests to the user."""
    return f"{folder} is of an earlier version and has no digests: it can be read, but flipped bits stay undetected"


def _is_older(folder: Path) -> bool:
    """Return whether a checkpoint without a manifest never had one, according to its state.

    Raises:
        Damaged: the state cannot be read.
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

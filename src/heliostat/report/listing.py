"""The runs in folders, a row each, from the ends of their files; no file of a run is opened for writing or locked.

Left out: printing (``cli.runs``), and results of ``heliostat control``, whose folders are only named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.outputs import MARKER
from heliostat.report.runs.glance import Glance, glance

CONTROL = "control.json"
OF_A_RUN = ("recipe.toml", "versions.json")
"""Files of a run of an earlier version, which wrote no marker."""
LOGS = ("metrics.jsonl", "evals.jsonl", "summary.json", "recipe.toml", CONTROL, "laps.jsonl")


@dataclass(frozen=True, slots=True)
class Listed:
    """A run in a list.

    Attributes:
        run: its state; ``None`` for a folder of ``heliostat control``.
        num_bytes: its size on the disk.
        changed: when its logs last changed, in seconds since the epoch.
    """

    folder: Path
    run: Glance | None
    num_bytes: int
    changed: float

    @property
    def status(self) -> str:
        """The status in words."""
        return "control" if self.run is None else self.run.status

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        row: dict[str, Any] = {"folder": str(self.folder), "status": self.status}
        if self.run is not None:
            row |= {"reason": self.run.reason, "step": self.run.step, "num_steps": self.run.num_steps}
            for phase in ("before", "after"):
                estimate = self.run.held_out(phase)
                row[phase] = estimate and {"pass@1": estimate.value, "ci95": [estimate.low, estimate.high]}
        return row | {"bytes": self.num_bytes, "changed": self.changed}


def list_runs(folders: Iterable[Path]) -> list[Listed]:
    """List the runs among ``folders`` and their subfolders, the last changed first; other folders are left out.

    Raises:
        OSError: one of ``folders`` is missing, is no folder, or may not be read.
    """
    found = {path.resolve(): _listed(path) for folder in folders for path in _runs_in(folder)}
    return sorted(found.values(), key=lambda one: one.changed, reverse=True)


def newest_run(root: Path) -> Path | None:
    """Return the run in ``root`` whose logs changed last; ``None`` without a run, or without ``root``."""
    if not root.is_dir():
        return None
    runs = [path for path in _runs_in(root) if not _is_control(path)]
    return max(runs, key=_changed, default=None)


def _runs_in(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return
    yield from sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _is_run(folder: Path) -> bool:
    """Return whether a folder is a run's; one that may not be read counts, so that it is listed as broken."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder.is_dir()
    names = {path.name for path in folder.iterdir()}
    return MARKER in names or CONTROL in names or names.issuperset(OF_A_RUN)


def _is_control(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MARKER).read_bytes())["kind"] == "heliostat control")
    except (OSError, ValueError, KeyError, TypeError):
        return os.access(folder, os.X_OK) and (folder / CONTROL).is_file()


def _listed(folder: Path) -> Listed:
    if _is_control(folder):
        return Listed(folder, None, _size(folder), _changed(folder))
    try:
        run = glance(folder)
    except OSError as error:
        run = Glance(folder, "broken", (error.strerror or type(error).__name__).lower())
    return Listed(folder, run, _size(folder), _changed(folder))


def _size(folder: Path) -> int:
    """Sum up the blocks of all files that can be read; a file with two names counts once."""
    sizes = {}
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(path) / name).lstat()
            except OSError:  # a running run has just removed it
                continue
            sizes[found.st_dev, found.st_ino] = 512 * found.st_blocks
    return sum(sizes.values())


def _changed(folder: Path) -> float:
    times = []
    for path in (*(folder / name for name in LOGS), folder):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times[:-1], default=times[-1] if times else 0.0)

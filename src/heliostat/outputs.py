"""Outputs that this package may overwrite: folders that its own runs marked, and files that it wrote.

    claim_folder       make an empty folder, or one that was claimed before, a run's own; refuse any other
    release_folder     the reverse, for a run that was refused before it began
    check_replaceable  refuse to overwrite a file of another program

Left out: locks, and the contents of a run folder (``train.run_folder.folder``, ``control.runs``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from heliostat.config import ConfigError
from heliostat.storage import publish_file

MARKER = "heliostat-run.json"
"""File in every folder that a run may write to; remove it to keep runs out of the folder."""

_HEAD = 1 << 16


def claim_folder(folder: Path, kind: str, is_older: Callable[[Path], bool] = lambda folder: False) -> bool:
    """Mark ``folder`` as a run's own, and create it if it is missing.

    Args:
        kind: of the run, stored in the marker.
        is_older: whether a folder without marker is of an earlier version of this package, which wrote none.

    Returns:
        Whether the folder was created.

    Raises:
        ConfigError: the folder is a file, cannot be created or read, belongs to a run of another kind, or holds files
            that no run of Heliostat wrote.

    **Limits** A refused folder is not changed. The remains of a claim by a killed process (nothing, or the half-written
    marker) do not count as content.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in folder.iterdir())
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"{folder} cannot be a run folder: it, or a part of its path, is not a folder; choose another with --run"
        ) from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ConfigError(f"{folder} cannot be a run folder ({reason}); choose another with --run") from error
    marker, partial = folder / MARKER, folder / f"{MARKER}.partial"
    if MARKER in names:
        if (owner := _kind(marker)) != kind:
            raise ConfigError(f"{folder} belongs to {owner}, not to {kind}; choose another folder with --run")
        return made
    others = [name for name in names if name != partial.name]
    if others and not is_older(folder):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(
            f"{folder} is not empty, and no run of Heliostat made it (it holds '{others[0]}'{more}); choose a new or "
            "an empty folder with --run"
        )
    publish_file(marker, json.dumps({"kind": kind}) + "\n")
    return made


def _kind(marker: Path) -> str:
    try:
        return str(json.loads(marker.read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"nobody we know ({MARKER} is damaged)"


def release_folder(folder: Path, names: Iterable[str]) -> None:
    """Remove a folder that was created for a run, with the files and empty folders of its start.

    **Limits** Any other file in the folder stays, and with it the folder and its marker.
    """
    for name in names:
        path = folder / name
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
    if [entry.name for entry in folder.iterdir()] == [MARKER]:
        (folder / MARKER).unlink()
        folder.rmdir()


def check_replaceable(path: Path, mark: str, what: str) -> None:
    """Refuse to overwrite a file that this package did not write.

    Args:
        mark: text near the beginning or the end of every file of this kind.
        what: the kind of file with its article, for the message.

    Raises:
        ConfigError: the file exists, is not empty and has no such mark, or it is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file for {what}")
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        text = file.read(_HEAD)
        file.seek(0, os.SEEK_END)
        file.seek(max(len(text), file.tell() - _HEAD))
        text += file.read()
    if mark.encode() not in text:
        raise ConfigError(f"{path} exists and is not {what} of Heliostat; remove it, or choose another name")

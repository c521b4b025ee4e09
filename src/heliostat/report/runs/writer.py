"""The process that works in a run folder, found without touching the lock that it holds.

A run locks ``run.lock`` and writes its process id there. Trying that lock, even for an instant, would refuse a run that
starts in this instant. So the id is read, and the process is asked for its open files.

Left out: taking the lock (``train.run_folder.lock``).
"""

from __future__ import annotations

import os
from pathlib import Path

LOCK = "run.lock"
PROCESSES = Path("/proc")


def writer_of(folder: Path) -> int | None:
    """Return the id of the process that works in ``folder``; ``None`` if no process does.

    **Limits** Only processes of this machine are seen: a run of another machine that shares the folder, or of another
    container, counts as ended. A process of another user counts as the writer if it has the id.
    """
    try:
        content = (folder / LOCK).read_bytes()
        lock = (folder / LOCK).stat()
    except OSError:
        return None
    if not content.strip().isdigit():  # released, or not yet written
        return None
    process = int(content)
    return process if _has_open(process, lock) else None


def _has_open(process: int, file: os.stat_result) -> bool:
    """Return whether a process has a file open; a number that went to another process does not count."""
    try:
        descriptors = list((PROCESSES / str(process) / "fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return False
    return any(_is_same(descriptor, file) for descriptor in descriptors)


def _is_same(descriptor: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(descriptor.stat(), file)
    except OSError:  # closed meanwhile
        return False

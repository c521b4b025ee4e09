"""The lock of a run folder: one process writes at a time, and a killed process leaves no lock behind.

Left out: the files that the lock protects (``folder``).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from heliostat.config import ConfigError


class RunLocked(RuntimeError):
    """Another process is working in the run folder."""


def take_lock(folder: Path) -> TextIO:
    """Lock ``folder`` for this process, and return the lock file; to close it is to release the lock.

    The kernel releases it when the process ends, however it ends.

    Raises:
        RunLocked: another process holds it.
        ConfigError: a link stands in its place.
    """
    path = folder / "run.lock"
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; remove it, or choose another folder with --run")
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise RunLocked(
            f"{folder} is in use by process {owner or 'unknown'}; wait for it, or choose another folder with --run"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock

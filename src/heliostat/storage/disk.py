"""Steps of atomic publishing: locking, syncing, file modes, and walking without following links.

Left out: the order of the steps, which makes them safe (``files``, ``folders``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE_S = 600.0
"""How long a second writer of one place waits for the first, in seconds."""


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; file systems without support are skipped."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush ``folder`` and every file and folder below it to the disk."""
    for path in walk(folder):
        if path.is_dir():
            sync_folder(path)
        else:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(folder)


def walk(folder: Path) -> Iterator[Path]:
    """Yield all paths below ``folder`` sorted by name, without links."""
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            yield path


def apply_umask(folder: Path) -> None:
    """Apply the umask's modes to everything in a new folder, because some libraries' writers do not.

    The umask is read from the folder's own mode: querying it would change it for other threads.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in walk(folder):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def lock_or_wait(descriptor: int, wait: bool = True) -> bool:
    """Take the exclusive lock of an open file or folder; ``False`` if another process holds it.

    **Limits** On file systems without such locks everybody gets it.

    Raises:
        OSError: it was held for longer than ``PATIENCE_S``.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not wait:
                return False
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another process has been writing it for too long") from None
            time.sleep(0.05)
        except OSError:
            return True


def is_same(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder is still the one at ``path``."""
    try:
        there, here = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

"""Replace one file atomically: at every instant it has the complete old or new content.

    write NAME.partial -> fsync -> rename to NAME -> fsync the folder

Left out: folders (``folders``) and files that grow (``rows``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliostat.storage.disk import is_same, lock_or_wait, sync_folder
from heliostat.storage.errors import naming
from heliostat.storage.signals import signals_held

PARTIAL = ".partial"
"""Ending of a file or folder that is being written."""


def publish_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically, with the umask's mode; text is UTF-8.

    A link at ``path`` is replaced, not followed; a pipe or device (/dev/stdout) is written to as it is. Two processes
    that write one file take turns.

    Raises:
        StorageError: the disk refused; an earlier file is intact.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe, or /dev/stdout: nothing to replace
        path.write_bytes(data)
        return
    partial = path.with_name(path.name + PARTIAL)
    with naming(path), _claimed(partial) as descriptor:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
            with signals_held():
                partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def _claimed(partial: Path) -> Iterator[int]:
    """Open an empty file at ``partial`` that this process owns; a killed writer's file is reused."""
    while True:
        if partial.is_symlink():
            partial.unlink()
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            lock_or_wait(descriptor)
            if is_same(descriptor, partial):
                os.ftruncate(descriptor, 0)
                yield descriptor
                return
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, in as many system calls as needed."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

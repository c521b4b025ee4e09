"""Replace or remove a folder atomically: at every instant it is the complete old or new one.

    publish    write NAME.partial -> fsync all -> NAME to NAME.replaced -> NAME.partial to NAME -> delete the former
    remove     NAME to NAME.deleted -> delete it
    recover    after a kill: finish an interrupted swap, and delete every other folder with such a name

NAME is renamed aside only after NAME.partial is complete and on the disk. Hence if NAME is missing and
NAME.replaced exists, NAME.partial is complete; without NAME.replaced, NAME.partial may be incomplete and is ignored.
A folder is renamed before it is deleted, so that no partly deleted folder has a meaningful name.

Left out: single files (``files``), and checking the content (``manifest``).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from heliostat.storage.disk import apply_umask, is_same, lock_or_wait, sync_folder, sync_tree
from heliostat.storage.errors import StorageError, naming
from heliostat.storage.files import PARTIAL
from heliostat.storage.signals import signals_held

REPLACED, DELETED = ".replaced", ".deleted"
ENDINGS = (PARTIAL, REPLACED, DELETED)


class FolderDraft:
    """A folder being written at ``path``, until ``publish`` moves it into place or ``discard`` removes it.

    Two processes that write one folder take turns.

    Raises:
        StorageError: it cannot be made, or its place is taken by a link or a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = partial_of(folder)
        with naming(folder):
            if _is_other(folder):
                raise StorageError(f"will not replace {folder}: it is no folder (a link or a file); remove it first")
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _claim_settled(folder)
            _empty(self.path)

    def publish(self) -> None:
        """Flush the folder to the disk and move it into place.

        Raises:
            StorageError: the disk refused; an earlier folder is intact.
        """
        replaced = _with(self.folder, REPLACED)
        with naming(self.folder):
            apply_umask(self.path)
            sync_tree(self.path)
            with signals_held():
                if self.folder.exists():
                    self.folder.rename(replaced)
                    sync_folder(self.folder.parent)
                try:
                    self.path.rename(self.folder)
                except OSError:
                    replaced.rename(self.folder)
                    raise
                sync_folder(self.folder.parent)
            self._release()
            _delete(replaced, self.folder)

    def discard(self) -> None:
        """Remove the draft; an earlier folder stays."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it replaces ``folder`` at the end, or is removed after an error.

    Raises:
        StorageError: the disk refused, in the block or afterwards; an earlier folder is intact.
    """
    draft = FolderDraft(folder)
    try:
        with naming(folder):
            yield draft.path
            draft.publish()
    finally:
        draft.discard()  # publication leaves nothing to remove


def remove_folder(folder: Path) -> None:
    """Delete a folder; if killed, it stays complete, or has a name that is ignored.

    Raises:
        StorageError: the system refused.
    """
    with naming(folder):
        _settle(folder)
        _delete(folder, folder)


def recover_folder(folder: Path) -> None:
    """Finish or undo an interrupted publish or removal of ``folder``.

    **Limits** Nothing is touched while another process is writing it.

    Raises:
        StorageError: the system refused.
    """
    if not any(os.path.lexists(_with(folder, ending)) for ending in ENDINGS):
        return
    with naming(folder):
        partial = partial_of(folder)
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            _settle(folder)
            return
        try:
            if lock_or_wait(descriptor, wait=False) and is_same(descriptor, partial):
                _settle(folder)
                if is_same(descriptor, partial):
                    shutil.rmtree(partial)
        finally:
            os.close(descriptor)


def new_folder(folder: Path) -> Path:
    """Make a folder that did not exist: ``folder``, or the first free one of ``folder-2``, ``folder-3``, ...

    Raises:
        StorageError: the system refused.
    """
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                number += 1


def partial_of(folder: Path) -> Path:
    """Return the path at which ``folder`` is written before it is published."""
    return _with(folder, PARTIAL)


def _with(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def _claim_settled(folder: Path) -> int:
    """Lock ``folder``'s draft, after recovering from writers that were killed, also while this one waited."""
    while True:
        recover_folder(folder)
        lock = _claim(partial_of(folder))
        if not os.path.lexists(_with(folder, REPLACED)):
            return lock
        os.close(lock)


def _claim(partial: Path) -> int:
    """Create ``partial``, or take over a killed writer's; returns the descriptor that holds its lock."""
    while True:
        if partial.is_symlink() or partial.is_file():
            partial.unlink()
        with suppress(FileExistsError):
            partial.mkdir()
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # it was published meanwhile
            continue
        lock_or_wait(descriptor)
        if is_same(descriptor, partial):
            return descriptor
        os.close(descriptor)


def _settle(folder: Path) -> None:
    """Finish an interrupted swap, and delete folders that were renamed aside."""
    replaced = _with(folder, REPLACED)
    if os.path.lexists(replaced) and not os.path.lexists(folder):
        complete = partial_of(folder)
        is_there = complete.is_dir() and not complete.is_symlink() and any(complete.iterdir())
        (complete if is_there else replaced).rename(folder)
        sync_folder(folder.parent)
    _delete(replaced, folder)
    _delete(_with(folder, DELETED), folder)


def _delete(path: Path, folder: Path) -> None:
    """Delete ``path`` under a name that is ignored."""
    deleted = _with(folder, DELETED)
    if not os.path.lexists(path):
        return
    while path != deleted and os.path.lexists(path):
        _erase(deleted)
        with _meeting_others():
            path.rename(deleted)
    sync_folder(folder.parent)
    _erase(deleted)


def _erase(path: Path) -> None:
    while os.path.lexists(path):
        with _meeting_others():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def _meeting_others() -> Iterator[None]:
    """Retry an operation that failed because another process deletes the same folder or took the same name."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _is_other(path: Path) -> bool:
    """Return whether ``path`` exists and is no folder."""
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        _erase(path)

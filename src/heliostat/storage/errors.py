"""What can go wrong with a file, as two kinds: it could not be written, or it is not what was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """A file or folder could not be written; the message names it, and what was there before is intact."""


class Damaged(ValueError):
    """A file is not what was written; the message names the file."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in every error of the operating system.

    Raises:
        StorageError: in place of any ``OSError`` that is none yet.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        message = f"could not write {path} ({reason}); what was there before is intact"
        spoken = StorageError(message)
        spoken.errno = error.errno
        raise spoken from error

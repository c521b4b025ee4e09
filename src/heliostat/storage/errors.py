"""What can go wrong with a file, as two kinds: it could not be written, or it is not what was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """A file or folder could not be written; the message names it, and what was there before is intact."""


class Damaged(ValueError):
    """A file is not what was written; the message names the file."""


_FULL = ("os error 28", "No space left on device", "unexpected pos")
"""How libraries say that a disk is full; the last is torch's, whose file came out shorter than what it wrote."""


def reason_of(error: BaseException) -> str:
    """Why the disk refused, in the system's words where there are some."""
    cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
    return os.strerror(errno.ENOSPC) if any(words in str(cause) for words in _FULL) else str(cause)


def is_full(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that the disk is full."""
    return reason_of(error) == os.strerror(errno.ENOSPC)


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

"""The two errors of a file: it could not be written, or it differs from the content that was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """A file or folder could not be written; the message names it, and its previous content is intact."""


class Damaged(ValueError):
    """A file differs from the content that was written; the message names the file."""


_FULL = ("os error 28", "No space left on device", "unexpected pos")
"""Messages of libraries for a full disk; the last is torch's, for a file shorter than its content."""


def reason_of(error: BaseException) -> str:
    """Return the reason of an operating-system error, in the system's words if there are any."""
    cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
    return os.strerror(errno.ENOSPC) if any(words in str(cause) for words in _FULL) else str(cause)


def is_full(error: BaseException) -> bool:
    """Return whether an error, of any library, means that the disk is full."""
    return reason_of(error) == os.strerror(errno.ENOSPC)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to every operating-system error inside the block.

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

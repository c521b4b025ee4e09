r"""Append to JSONL files, read them after a crash, and truncate them to a checkpoint's extent.

Lines end with ``\n`` and nothing else: U+2028, U+2029 and U+0085 are characters of a text. Files are read as bytes, so
a character that a full disk truncated damages only its own line. A row whose last byte was not written does not count.
A complete row without its line end (an editor) counts.

Left out: the content of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from heliostat.storage.errors import Damaged, naming
from heliostat.storage.files import publish_file, write_all

Row = dict[str, Any]


@dataclass(slots=True)
class JsonRows:
    """The rows of a file, and its damaged lines.

    Attributes:
        broken: numbers, from 1, of lines that are neither empty nor a JSON object.
    """

    rows: list[Row] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a file at a checkpoint: its size, and a digest of its content."""

    num_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"bytes": self.num_bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Convert from JSON values.

        Raises:
            KeyError: a value is missing.
        """
        return cls(values["bytes"], values["sha256"])


def read_rows(path: Path) -> JsonRows:
    """Read every readable row; a missing file has none."""
    found = JsonRows()
    for number, (line, row) in enumerate(_lines(path), start=1):
        if row is not None:
            found.rows.append(row)
        elif line.strip():
            found.broken.append(number)
    return found


def read_last_rows(path: Path, num: int) -> list[Row]:
    """Read the last ``num`` readable rows, oldest first, from the end of the file; a missing file has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        tail, start = b"", os.fstat(descriptor).st_size
        while start and tail.count(b"\n") <= num + 1:  # one more for a torn row, one for the rest of a line
            size = min(start, 1 << 16)
            start -= size
            tail = os.pread(descriptor, size, start) + tail
    finally:
        os.close(descriptor)
    lines = tail.split(b"\n")[1 if start else 0 :]
    rows = [row for line in lines if (row := _row(line)) is not None]
    return rows[-num:]


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, sync: bool = True) -> None:
    """Append rows, all of them or none; a killed process's partial row is removed first.

    Args:
        sync: force them to the disk before returning.

    Raises:
        StorageError: the disk refused, or a link is in the way.
    """
    data = b"".join(_encoded(row) for row in rows)
    with naming(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            data = _mend_tail(descriptor) + data
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
                if sync:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> int:
    """Drop every row that ``keep`` refuses, and every damaged line; returns the number of damaged lines.

    Kept rows are unchanged, byte for byte.

    Raises:
        StorageError: the disk refused; the file is as it was.
    """
    lines = list(_lines(path))
    kept = b"".join(line + b"\n" for line, row in lines if row is not None and keep(row))
    if kept != b"".join(line + b"\n" for line, _ in lines):
        publish_file(path, kept)
    return sum(row is None and bool(line.strip()) for line, row in lines)


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by one with other rows.

    Raises:
        StorageError: the disk refused; the file is as it was.
    """
    publish_file(path, b"".join(_encoded(row) for row in rows))


def extent_of(path: Path, keep: Callable[[Row], bool] = lambda row: True) -> Extent:
    """Return the extent of ``path`` up to the first row that ``keep`` refuses, after flushing it to the disk."""
    digest, size = hashlib.sha256(), 0
    for line, row in _lines(path):
        if row is not None and not keep(row):
            break
        digest.update(line + b"\n")
        size += len(line) + 1
    if size:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return Extent(size, digest.hexdigest())


def truncate_rows(path: Path, extent: Extent) -> None:
    """Truncate a file to ``extent``.

    Raises:
        Damaged: the file is shorter, or was something else up to there; it is as it was.
        StorageError: the disk refused.
    """
    if path.is_symlink():
        raise Damaged(f"{path} is a link, which was not written here")
    if not path.exists():
        if extent.num_bytes:
            raise Damaged(f"{path} is missing")
        return
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(extent.num_bytes)).hexdigest()
        size = os.fstat(file.fileno()).st_size
    if size < extent.num_bytes or found != extent.sha256:
        raise Damaged(f"{path} is not what was written")
    if size > extent.num_bytes:
        with naming(path), path.open("rb+") as file:
            file.truncate(extent.num_bytes)
            os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[tuple[bytes, Row | None]]:
    """Yield every line without its end, and its row."""
    if not path.exists():
        return
    *lines, tail = path.read_bytes().split(b"\n")
    for line in lines:
        yield line, _row(line)
    if (row := _row(tail)) is not None:
        yield tail, row
    elif tail:
        yield tail, None


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _encoded(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which models write and UTF-8 cannot hold
        return json.dumps(row).encode("ascii") + b"\n"


def _mend_tail(descriptor: int) -> bytes:
    """Return the bytes to write before the next row; a partial row is removed."""
    size = os.fstat(descriptor).st_size
    tail, start = b"", size
    while start and b"\n" not in tail:
        step = min(start, 1 << 16)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    tail = tail.rpartition(b"\n")[2]
    if not tail:
        return b""
    if _row(tail) is not None:
        return b"\n"
    os.ftruncate(descriptor, size - len(tail))
    return b""

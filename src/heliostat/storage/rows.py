r"""Files of one JSON object a line that grow, are read after a crash, and are cut back to where a checkpoint stands.

Lines end with ``\n`` and nothing else: U+2028, U+2029 and U+0085 are characters of a text. Files are read as bytes, so
a character that was torn by a full disk spoils its own line alone. A row whose last byte was not written is no row; a
complete one that lost its line end (an editor) is.

Left out: what is in a row (the readers).
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
    """What a file holds.

    Attributes:
        broken: numbers, from 1, of lines that are neither empty nor a JSON object.
    """

    rows: list[Row] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a file had been written, and what was in it."""

    num_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bytes": self.num_bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The reverse.

        Raises:
            KeyError: a value is missing.
        """
        return cls(values["bytes"], values["sha256"])


def read_rows(path: Path) -> JsonRows:
    """Every row that can be read; a file that is missing has none."""
    found = JsonRows()
    for number, (line, row) in enumerate(_lines(path), start=1):
        if row is not None:
            found.rows.append(row)
        elif line.strip():
            found.broken.append(number)
    return found


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, sync: bool = True) -> None:
    """Append rows, all of them or none; what a killed process left of a row is removed first.

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
    """Drop every row that ``keep`` refuses, and every line that is none; returns how many lines were none.

    What stays is what was written, byte for byte.

    Raises:
        StorageError: the disk refused; the file is as it was.
    """
    lines = list(_lines(path))
    kept = b"".join(line + b"\n" for line, row in lines if row is not None and keep(row))
    if kept != b"".join(line + b"\n" for line, _ in lines):
        publish_file(path, kept)
    return sum(row is None and bool(line.strip()) for line, row in lines)


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of other rows in place of the one that is there.

    Raises:
        StorageError: the disk refused; the file is as it was.
    """
    publish_file(path, b"".join(_encoded(row) for row in rows))


def extent_of(path: Path, keep: Callable[[Row], bool] = lambda row: True) -> Extent:
    """How far ``path`` goes, up to the first row that ``keep`` refuses, on the disk before this returns."""
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
    """Cut a file back to ``extent``.

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
    """Every line without its end, and the row in it."""
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
    """What must be written so that the next row begins a line; a row that was not finished is cut off."""
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

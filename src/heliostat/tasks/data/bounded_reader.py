"""Read rows of JSONL and Parquet files that may be damaged or hostile, within bounds on size and nesting.

Errors name the file and the line.

Left out: other kinds of files (``file_formats``), and data sets of the hub, whose own library reads them (``rows``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from heliostat.extras import require
from heliostat.tasks.data.text_encoding import recognise

MAX_ROW = 1 << 24  # bytes of one row: longer than the longest context by far
MAX_TABLE = 1 << 33  # bytes of a Parquet file once it is decompressed; all of it is held in memory
MAX_DEPTH = 64  # lists and dicts inside each other
_BATCH = 64  # rows of a Parquet file that are decompressed at once
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row, and its place: ``problems.jsonl, line 7``."""

    place: str
    columns: dict[str, Any]


def jsonl_rows(file: Path) -> Iterator[DataRow]:
    """Read rows of a JSONL file; only a newline character ends a line.

    Raises:
        ValueError: a line is too long, not UTF-8, or not a JSON object; names the encoding that it seems to be.
    """
    with file.open("rb") as lines:
        yield from lines_of(lines, file.name)


def lines_of(lines: BinaryIO, name: str) -> Iterator[DataRow]:
    """Read rows of an open JSONL file called ``name``; see ``jsonl_rows``."""
    number, start = 0, b""
    while line := lines.readline(MAX_ROW + 1):
        number += 1
        start = start or line[:4]
        place = f"{name}, line {number}"
        if len(line) > MAX_ROW:
            raise ValueError(f"{place}: longer than {MAX_ROW >> 20} MiB")
        if line.strip():
            yield DataRow(place, _object(line.removeprefix(_BOM) if number == 1 else line, place, start))


def _object(line: bytes, place: str, start: bytes) -> dict[str, Any]:
    columns = parse_json(decode_text(line, place, start), place)
    if isinstance(columns, list) and line.strip().startswith(b"["):
        raise ValueError(
            f"{place}: expected a JSON object with columns, got list; name a file that is one JSON array .json"
        )
    if not isinstance(columns, dict):
        raise ValueError(f"{place}: expected a JSON object with columns, got {type(columns).__name__}")
    return columns


def decode_text(content: bytes, place: str, start: bytes) -> str:
    """Decode UTF-8.

    Args:
        start: the first bytes of the file, which may identify another encoding.

    Raises:
        ValueError: it is not UTF-8; names the place, the likely encoding and how to convert it.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding, way_out = recognise(start, content)
        found = f"byte {error.start + 1}: 0x{content[error.start]:02x}"
        raise ValueError(f"{place}: not UTF-8 ({found}) but {encoding}; {way_out}") from None


def parse_json(text: str, place: str) -> Any:
    """Parse JSON; NaN, which pandas and Python write for missing values, becomes ``None``.

    Raises:
        ValueError: it is not JSON, or nested too deep; names the place.
    """
    try:
        return json.loads(text, parse_constant=_constant)
    except json.JSONDecodeError as error:
        spread = "; every object stands on a line of its own" if text.strip() in ("{", "[", "[{") else ""
        nul = " (NUL characters: UTF-16?)" if "\0" in text else ""
        raise ValueError(f"{place}: not valid JSON ({error.msg} at column {error.colno}){spread}{nul}") from None
    except RecursionError:
        raise ValueError(f"{place}: lists or objects are nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # a constant that is no JSON, or a whole number of thousands of digits
        raise ValueError(f"{place}: not valid JSON ({error})") from None


def _constant(name: str) -> None:
    if not math.isnan(float(name)):
        raise ValueError(f"{name} is no number")


def parquet_rows(file: Path) -> Iterator[DataRow]:
    """Read rows of a Parquet file, and verify its checksums if it has any.

    Raises:
        ConfigError: pyarrow is missing.
        ValueError: it is damaged, or grows beyond all bounds when it is decompressed.
    """
    require("a Parquet file", "data", "pyarrow")
    import pyarrow.parquet

    number = size = 0
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
            metadata = table.metadata
            claimed = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            _check_size(file, claimed, MAX_TABLE)
            for batch in table.iter_batches(batch_size=_BATCH):
                size += batch.nbytes
                _check_size(file, size, MAX_TABLE)
                _check_size(file, batch.nbytes, _BATCH * MAX_ROW)
                for columns in batch.to_pylist():
                    number += 1
                    yield DataRow(f"{file.name}, row {number}", columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file.name} is not a readable Parquet file: after row {number}: {reason:.200}") from None


def _check_size(file: Path, size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{file.name} takes more than {most >> 20} MiB once it is decompressed")


def check_values(place: str, columns: dict[str, Any]) -> None:
    """Refuse values that cannot be serialized: lone surrogates, and nesting beyond ``MAX_DEPTH``.

    Raises:
        ValueError: a column holds such a thing; the message begins with ``place``.
    """
    waiting = [(str(name), value, 1) for name, value in columns.items()] + [("", list(columns), 1)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(place, name, value)
        elif isinstance(value, dict | list | tuple):
            if depth > MAX_DEPTH:
                raise ValueError(f"{place}: '{name}' is nested more than {MAX_DEPTH} deep")
            items = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(name, item, depth + 1) for item in items]


def _check_text(place: str, name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        where = f"'{name}'" if name else "the name of a column"
        raise ValueError(
            f"{place}: {where} holds half of a character ({code}) and cannot be written as UTF-8"
        ) from None

"""Read data files and folders of them: JSONL, JSON arrays, CSV and TSV, each also compressed, and Parquet.

A CSV file's cells are text as it stands, so that ``007`` stays ``007``; empty ones are missing. Files are read in the
order of their names, and belong to the split that their name says (``train-00000.jsonl``, ``test.csv``).

Left out: folders with a layout of their own, like clones of the hub's repositories, which are left to ``datasets``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from heliostat.config import ConfigError
from heliostat.tasks.data.bounded_reader import MAX_TABLE, DataRow, decode_text, lines_of, parquet_rows, parse_json

_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
"""Words in file names, by the split that they mean; those that ``datasets`` knows."""


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder sorted by name; empty if it holds anything else."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    described = any(path.suffix == ".md" and "configs:" in path.read_text(errors="replace") for path in files)
    known = [path for path in files if path.is_file() and reader_of(path) is not None]
    return [] if described or any(path.is_dir() for path in files) else known


def reader_of(file: Path) -> Callable[[Path], Iterator[DataRow]] | None:
    """Return the function that reads rows of a file with this name; ``None``: no data file has such a name."""
    return READERS.get(Path(file.name.removesuffix(".gz")).suffix.lower())


def files_rows(files: Sequence[Path], split: str, place: str) -> Iterator[DataRow]:
    """Read rows of the files that belong to a split; files without a split in their name are ``train``.

    Raises:
        ConfigError: no file belongs to the split.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    unnamed = by_split.pop("", [])
    if unnamed and by_split:
        raise ConfigError(
            f"task.path: '{place}' has files of the split {' and '.join(by_split)}, and '{unnamed[0].name}', whose "
            "name says no split; rename it (like train-2) or move it away"
        )
    by_split = by_split or {"train": unnamed}
    wanted = next((name for name, words in _SPLITS.items() if split in words), split)
    if wanted not in by_split:
        raise ConfigError(f"task.split: '{place}' has no split '{split}'; it has: {', '.join(by_split)}")
    for file in by_split[wanted]:
        read = reader_of(file)
        assert read is not None
        yield from read(file)


def _split_of(file: Path) -> str:
    words = set(re.split(r"[^a-z]+", file.name.lower()))
    return next((split for split, known in _SPLITS.items() if words & known), "")


def _open(file: Path) -> BinaryIO:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _lines(file: Path) -> Iterator[DataRow]:
    with _open(file) as lines:
        yield from _unpacked(file, lines_of(lines, file.name))


def _unpacked(file: Path, rows: Iterator[DataRow]) -> Iterator[DataRow]:
    try:
        yield from rows
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file.name} is not a readable gzip file: {error}") from None


def _content(file: Path) -> str:
    try:
        with _open(file) as opened:
            content = opened.read(MAX_TABLE + 1)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file.name} is not a readable gzip file: {error}") from None
    if len(content) > MAX_TABLE:
        raise ValueError(f"{file.name} holds more than {MAX_TABLE >> 20} MiB")
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        decode_text(line, f"{file.name}, line {number}", content[:4])
    return content.decode("utf-8").removeprefix("\ufeff")


def _json(file: Path) -> Iterator[DataRow]:
    """Read rows of a JSON array of objects, or of JSONL under another name."""
    text = _content(file)
    if text.lstrip().startswith("["):
        for number, columns in enumerate(parse_json(text, file.name), start=1):
            if not isinstance(columns, dict):
                kind = type(columns).__name__
                raise ValueError(f"{file.name}, row {number}: expected a JSON object with columns, got {kind}")
            yield DataRow(f"{file.name}, row {number}", columns)
        return
    try:
        whole: Any = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and any(isinstance(value, list | dict) for value in whole.values()):
        raise ValueError(
            f"{file.name} is one JSON object with {', '.join(map(str, whole))!s:.80}; expected an array of objects, "
            "one per row"
        )
    yield from lines_of(io.BytesIO(text.encode()), file.name)


def _table(separator: str) -> Callable[[Path], Iterator[DataRow]]:
    def rows(file: Path) -> Iterator[DataRow]:
        reader = csv.reader(io.StringIO(_content(file), newline=""), delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"{file.name}, line 1: two columns have the same name")
            for number, cells in enumerate(filter(None, reader), start=1):
                place = f"{file.name}, row {number}"
                if len(cells) != len(header):
                    raise ValueError(f"{place}: {len(cells)} cells under {len(header)} columns")
                yield DataRow(place, {name: cell or None for name, cell in zip(header, cells, strict=True)})
        except csv.Error as error:
            raise ValueError(f"{file.name}, line {reader.line_num}: {error}") from None

    return rows


READERS: dict[str, Callable[[Path], Iterator[DataRow]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": parquet_rows,
}

"""Read rows of trace files, each with its place; an unreadable file or line is reported and skipped.

A path is a ``.jsonl`` or ``.parquet`` file, a folder of them (local or on an object store, by its fsspec address), a
folder written by ``datasets.save_to_disk``, or the name of a data set on the Hugging Face hub.

Left out: the meaning of columns (``columns``, ``dialects``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from heliostat.arguments import PathArg, as_text
from heliostat.traces.row_issues import RowIssues


class TraceRow(NamedTuple):
    """One row and its place: ``traces.jsonl, row 7``."""

    place: str
    columns: dict[str, Any]


def read_rows(path: PathArg, issues: RowIssues) -> Iterator[TraceRow]:
    """Read rows of every readable file under ``path``, in order of file names.

    Raises:
        FileNotFoundError: nothing is there.
        ModuleNotFoundError: pyarrow, fsspec or datasets is needed and missing.
    """
    import fsspec

    path = as_text(path)
    system, root = fsspec.core.url_to_fs(path)
    if not system.exists(root):
        if "://" not in path and _looks_like_hub_id(path):
            yield from _dataset_rows(path, issues)
            return
        raise FileNotFoundError(2, "there are no traces to import", path)
    if system.isfile(root):
        yield from _file_rows(system, root, issues)
        return
    names = sorted(system.find(root))
    if any(name.endswith(("/dataset_info.json", "/dataset_dict.json")) for name in names):
        yield from _dataset_rows(path, issues)
        return
    readable = [name for name in names if _suffix(name) in READERS and ".partial" not in name]
    if not readable:
        raise FileNotFoundError(2, f"there is neither {' nor '.join(READERS)} in this folder", path)
    for name in readable:
        yield from _file_rows(system, name, issues)


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]


def _file_rows(system: Any, name: str, issues: RowIssues) -> Iterator[TraceRow]:
    read = READERS.get(_suffix(name))
    if read is None:
        issues.report(name, f"skipped: neither {' nor '.join(READERS)}")
        return
    try:
        yield from read(system, name, issues)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors; a broken text is a UnicodeDecodeError
        issues.report(name, f"skipped from here on: {' '.join(str(error).split())}")


def _jsonl_rows(system: Any, name: str, issues: RowIssues) -> Iterator[TraceRow]:
    short = name.rpartition("/")[2]
    with system.open(name, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{short}, row {number}"
            try:
                columns = json.loads(line)
            except ValueError as error:
                issues.report(place, f"not valid JSON ({error})")
                continue
            if isinstance(columns, dict):
                yield TraceRow(place, columns)
            else:
                issues.report(place, f"expected a JSON object, got {type(columns).__name__}")


def _parquet_rows(system: Any, name: str, issues: RowIssues) -> Iterator[TraceRow]:
    import pyarrow.parquet

    short = name.rpartition("/")[2]
    number = 0
    with system.open(name, "rb") as file:
        for batch in pyarrow.parquet.ParquetFile(file, page_checksum_verification=True).iter_batches(batch_size=1000):
            for columns in batch.to_pylist():
                number += 1
                yield TraceRow(f"{short}, row {number}", columns)


READERS: dict[str, Callable[[Any, str, RowIssues], Iterator[TraceRow]]] = {
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}


def _looks_like_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and _suffix(path) not in READERS


def _dataset_rows(path: str, issues: RowIssues) -> Iterator[TraceRow]:
    import datasets

    try:
        on_disk = datasets.load_from_disk(path) if "/" not in path or _is_folder(path) else datasets.load_dataset(path)
    except Exception as error:  # a dozen kinds: not found, no network, gated, broken file
        issues.report(path, f"cannot load this data set: {type(error).__name__}: {' '.join(str(error).split())}")
        return
    parts = on_disk if isinstance(on_disk, datasets.DatasetDict) else {"": on_disk}
    for split, rows in parts.items():
        for number, columns in enumerate(rows, start=1):
            yield TraceRow(f"{path}{f' [{split}]' if split else ''}, row {number}", dict(columns))


def _is_folder(path: str) -> bool:
    from pathlib import Path

    return Path(path).is_dir()

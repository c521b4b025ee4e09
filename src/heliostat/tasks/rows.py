"""Rows of a data file, each with the place it stands, for messages: JSONL, Parquet, or a Hugging Face data set.

Left out: what the columns mean (``files``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError
from heliostat.tasks.given import PREFIX, find_rows

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and where it stands: ``problems.jsonl, line 7``."""

    place: str
    columns: dict[str, Any]


def read_rows(path: str, split: str, subset: str) -> Iterator[Row]:
    """Rows of a ``.jsonl`` or ``.parquet`` file, a data-set folder, or a data set on the hub, in order.

    Args:
        split: of a data set that has several.
        subset: of a hub data set that has several configurations.

    Raises:
        ConfigError: nothing is there, or its kind is unknown.
        ValueError: a line is not a JSON object; names file and line.
    """
    if path.startswith(PREFIX):
        return (Row(f"data, row {number}", row) for number, row in enumerate(find_rows(path), start=1))
    file = Path(path).expanduser()
    if file.is_dir():
        return _dataset_rows(path, lambda: _load_folder(file, split))
    if file.suffix in READERS:
        if not file.is_file():
            raise ConfigError(f"task.path: there is no file '{path}' (looked in {Path.cwd()})")
        return READERS[file.suffix](file)
    if file.is_file():
        raise ConfigError(f"task.path: '{path}' is neither {' nor '.join(READERS)} nor a data-set folder")
    if not path or not _HUB_ID.fullmatch(path):
        raise ConfigError(f"task.path: there is no file or folder '{path}'")
    return _dataset_rows(path, lambda: _load_hub(path, subset, split))


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file.name}, line {number}"
            if not line.strip():
                continue
            try:
                columns = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(columns, dict):
                raise ValueError(f"{place}: expected a JSON object with columns, got {type(columns).__name__}")
            yield Row(place, columns)


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'heliostat[data]'") from error
    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file.name} is not a readable Parquet file: {error}") from None
    for number, columns in enumerate(table.to_pylist(), start=1):
        yield Row(f"{file.name}, row {number}", columns)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _dataset_rows(path: str, load: Callable[[], Any]) -> Iterator[Row]:
    for number, columns in enumerate(load(), start=1):
        yield Row(f"{path}, row {number}", dict(columns))


def _load_folder(folder: Path, split: str) -> Any:
    datasets = _datasets()
    saved = any((folder / marker).exists() for marker in ("dataset_dict.json", "state.json"))
    loaded = datasets.load_from_disk(str(folder)) if saved else _load(str(folder), None, split)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ConfigError(f"task.split: '{folder}' has no split '{split}'; it has: {', '.join(loaded)}")
        return loaded[split]
    return loaded


def _load_hub(path: str, subset: str, split: str) -> Any:
    return _load(path, subset or None, split)


def _load(path: str, subset: str | None, split: str) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # a dozen kinds: not found, no network, unknown split, gated, broken file
        reason = " ".join(str(error).split())
        raise ConfigError(f"task.path: cannot load data set '{path}': {type(error).__name__}: {reason}") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("data sets need the datasets package: pip install 'heliostat[data]'") from error
    return datasets

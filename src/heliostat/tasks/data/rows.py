"""Read rows of a data file or a Hugging Face data set, each with its place for messages.

Left out: the meaning of columns (``sources.data_files``), and reading files that may be damaged (``bounded_reader``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError
from heliostat.extras import require
from heliostat.tasks.data.bounded_reader import DataRow, check_values
from heliostat.tasks.data.columns import plain_row
from heliostat.tasks.data.file_formats import READERS, data_files, files_rows, reader_of
from heliostat.tasks.data.in_memory import PREFIX, find_rows, without_format

__all__ = ["DataRow", "read_rows"]

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_rows(path: str, split: str, subset: str) -> Iterator[DataRow]:
    """Read rows of a data file, a folder of files, a saved data set, or one on the hub, in order.

    Values are plain Python, and NaN is ``None``.

    Args:
        split: of a data set that has several.
        subset: of a hub data set that has several configurations.

    Raises:
        ConfigError: nothing is there, or its kind is unknown.
        ValueError: a row cannot be read, or holds an invalid value; names file and line.
    """
    return _checked(_raw_rows(path, split, subset))


def _checked(rows: Iterator[DataRow]) -> Iterator[DataRow]:
    for row in rows:
        check_values(row.place, row.columns)
        yield DataRow(row.place, plain_row(row.columns))


def _raw_rows(path: str, split: str, subset: str) -> Iterator[DataRow]:
    if path.startswith(PREFIX):
        return (DataRow(f"data, row {number}", row) for number, row in enumerate(find_rows(path), start=1))
    file = Path(path).expanduser()
    if file.is_dir():
        files = [] if _is_saved(file) else data_files(file)
        return files_rows(files, split, path) if files else _dataset_rows(path, lambda: _load_folder(file, split))
    if "*" in path:
        files = sorted(Path().glob(path)) if not file.is_absolute() else sorted(Path("/").glob(str(file)[1:]))
        raise ConfigError(
            f"task.path: '{path}' is a pattern ({len(files)} files match); put the files into a folder and give that"
        )
    if (read := reader_of(file)) is not None:
        if not file.is_file():
            raise ConfigError(f"task.path: there is no file '{path}' (looked in {Path.cwd()})")
        return read(file)
    if file.is_file():
        raise ConfigError(
            f"task.path: '{path}' is no data file; its name must end in {', '.join(READERS)} (each also with .gz)"
        )
    if not path or not _HUB_ID.fullmatch(path):
        raise ConfigError(f"task.path: there is no file or folder '{path}'")
    return _dataset_rows(path, lambda: _load_hub(path, subset, split))


def _dataset_rows(path: str, load: Callable[[], Any]) -> Iterator[DataRow]:
    for number, columns in enumerate(without_format(load()), start=1):
        yield DataRow(f"{path}, row {number}", dict(columns))


def _load_folder(folder: Path, split: str) -> Any:
    datasets = _datasets()
    loaded = datasets.load_from_disk(str(folder)) if _is_saved(folder) else _load(str(folder), None, split)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ConfigError(f"task.split: '{folder}' has no split '{split}'; it has: {', '.join(loaded)}")
        return loaded[split]
    return loaded


def _is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` wrote the folder."""
    return any((folder / marker).exists() for marker in ("dataset_dict.json", "state.json"))


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
    require("a data set", "data", "datasets")
    import datasets

    return datasets

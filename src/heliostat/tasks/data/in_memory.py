"""Functions and rows that a program hands to a run as they are, under names that a recipe can hold.

    with registering() as given:
        name = given.function(f)        "given:f", for task.verifiers
        path = given.rows(rows)         "given:5f3c…", for task.path

A run's recipe then says what it was made with, and the same program continues it; without the program the names lead
nowhere, which ``find`` says.

Left out: how functions reach the verifier processes (``sandbox.pickling``), and what columns mean
(``sources.data_files``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from heliostat.config import ConfigError, Recipe
from heliostat.tasks.data.bounded_reader import check_values
from heliostat.tasks.data.columns import has_column, plain_row
from heliostat.tasks.sandbox.pickling import label

PREFIX = "given:"


@dataclass(slots=True)
class Registry:
    """What one call of the Python API was given."""

    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def function(self, function: Any) -> str:
        """The name of a function or callable object; two of one name are numbered, and one keeps its name."""
        for name, known in self.functions.items():
            if known is function:
                return PREFIX + name
        stem = label(function)
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self.functions)
        self.functions[name] = function
        return PREFIX + name

    def rows(self, data: object) -> str:
        """The name of a list of dicts, a frame, an Arrow table or a ``datasets.Dataset``: its fingerprint.

        Raises:
            TypeError: it is none of these.
            ValueError: it holds no rows.
        """
        rows = list(_rows(data))
        if not rows:
            raise ValueError("data holds no rows")
        text = json.dumps(rows, sort_keys=True, default=str, ensure_ascii=False)
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.tables[name] = rows
        return PREFIX + name


_given: ContextVar[Registry | None] = ContextVar("given", default=None)


@contextmanager
def registering() -> Iterator[Registry]:
    """Make what is given inside findable inside."""
    given = Registry()
    token = _given.set(given)
    try:
        yield given
    finally:
        _given.reset(token)


def find_function(name: str) -> Callable[..., Any]:
    """The function of a name.

    Raises:
        ConfigError: this program has given none of that name.
    """
    given = _given.get()
    if given is None or name.removeprefix(PREFIX) not in given.functions:
        raise ConfigError(
            f"'{name}' is a function that a program gave to its run; only that program can go on with it, through "
            "heliostat.post_train(..., rewards=[function])"
        )
    return given.functions[name.removeprefix(PREFIX)]


def find_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a name.

    Raises:
        ConfigError: this program has given none of that name.
    """
    given = _given.get()
    if given is None or name.removeprefix(PREFIX) not in given.tables:
        raise ConfigError(
            f"task.path = '{name}' are rows that a program gave to its run; only that program can go on with it, "
            "through heliostat.post_train(..., data=rows) with the same rows"
        )
    return given.tables[name.removeprefix(PREFIX)]


# -- as settings of a recipe -----------------------------------------------------------------------------------------

MAX_HELDOUT = 200
HELDOUT_SHARE = 0.1
"""Of rows that come without a word on how many are held out."""
SOURCE_KEYS = {"name", "label", "path", "heldout_path", "split", "heldout_split", "subset", "num_train", "num_heldout"}
"""What a recipe says of its own data, and other data takes the place of."""


def with_registered(
    recipe: Recipe, given: Registry, data: object, rewards: Sequence[Any], heldout: object = None
) -> dict[str, Any]:
    """The recipe's tables with rows in place of its tasks, and functions in place of its verifiers.

    Args:
        data: rows, or ``None`` for the recipe's own tasks.
        heldout: rows to evaluate on; ``None``: some of ``data``, or a split of it.
        rewards: functions, names of verifiers, or tables of either; empty: the recipe's own verifiers.
    """
    tables = recipe.model_dump(mode="json")
    if data is not None:
        own = tables["task"][0]
        task, columns = _task_of(given, *split_data(data, heldout))
        kept = {key: value for key, value in own.items() if key not in SOURCE_KEYS}
        kept = {key: value for key, value in kept.items() if not key.endswith("_column") or has_column(columns, value)}
        tables["task"] = [(kept if own["name"] == "file" else {}) | task]
    if rewards:
        verifiers = [_table(given, reward) for reward in rewards]
        shaped = any(table["name"].startswith(PREFIX) for table in verifiers)
        for task in tables["task"]:
            task.update({"verifiers": verifiers} | ({"shaped": True} if shaped else {}))
    return tables


def named(given: Registry, settings: Any) -> Any:
    """Settings with names in place of the functions in them."""
    if isinstance(settings, Mapping):
        return {key: named(given, value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [named(given, value) for value in settings]
    return given.function(settings) if callable(settings) else settings


def _task_of(given: Registry, data: object, heldout: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of a task, and the columns of the first row."""
    path = given.rows(data)
    rows = given.tables[path.removeprefix(PREFIX)]
    num = len({json.dumps(row.get("prompt"), sort_keys=True, default=str) for row in rows})
    sizes = shares(num)
    if heldout is not None:
        elsewhere = given.rows(heldout)
        rows = rows + given.tables[elsewhere.removeprefix(PREFIX)]
        sizes = {"num_train": num, "num_heldout": 1, "heldout_path": elsewhere}
    has_answers = all(isinstance(row.get("answer"), str | int | float) and str(row["answer"]).strip() for row in rows)
    task = {"name": "file", "label": "data", "path": path}
    return task | sizes | ({"answer_column": "answer"} if has_answers else {}), rows[0]


def shares(num: int) -> dict[str, Any]:
    """How many of ``num`` rows are trained on, and how many are held out."""
    num_heldout = max(1, min(MAX_HELDOUT, int(HELDOUT_SHARE * num)))
    return {"num_train": max(1, num - num_heldout), "num_heldout": num_heldout}


def _table(given: Registry, reward: object) -> dict[str, Any]:
    """The verifier table of a function, of a name, or of a table with either; functions see whole completions."""
    table = dict(reward) if isinstance(reward, Mapping) else {"name": reward}
    if callable(table.get("name")):
        return {"sees": "completion"} | table | {"name": given.function(table["name"])}
    if not isinstance(table.get("name"), str):
        raise TypeError(f"rewards are functions, names of verifiers, or tables with a 'name', got {reward!r:.80}")
    return table


def _rows(data: object) -> Iterable[dict[str, Any]]:
    data = without_format(data)
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be rows (a list of dicts, a pandas or polars frame, or a datasets.Dataset), got "
            f"{type(data).__name__}; a file goes into the recipe: task.path"
        )
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise TypeError(f"data, row {number}: expected a dict with columns, got {type(row).__name__}")
        check_values(f"data, row {number}", dict(row))
        yield plain_row(row)


def without_format(data: Any) -> Any:
    """Rows of a frame, an Arrow table or a ``datasets`` data set, whatever library's arrays it would give.

    No such library is imported: each is known by what it offers.
    """
    if hasattr(data, "with_format"):  # datasets
        return data.with_format(None)
    if hasattr(data, "collect") and hasattr(data, "lazy"):  # polars, not yet computed
        data = data.collect()
    for convert in ("to_pylist", "to_dicts"):  # pyarrow, polars
        if hasattr(data, convert):
            return getattr(data, convert)()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        return data.to_dict("records")
    return data


def split_data(data: object, heldout: object) -> tuple[object, object]:
    """Training and held-out rows: as given, or the splits of a ``DatasetDict`` (a dict of data sets).

    Raises:
        TypeError: held-out rows come twice.
        ValueError: it is not clear which splits are meant.
    """
    if not isinstance(data, Mapping) or not data or "prompt" in data:
        return data, heldout
    train = "train" if "train" in data else next(iter(data))
    others = [name for name in data if name != train]
    if len(others) > 1:
        known = [name for name in ("test", "validation") if name in others]
        if len(known) != 1 and heldout is None:
            raise ValueError(
                f"data has the splits {', '.join(map(str, data))}; say which is held out: data=d['{train}'], "
                f"heldout=d['{others[0]}']"
            )
        others = known
    if heldout is not None:
        return data[train], heldout
    return data[train], data[others[0]] if others else None

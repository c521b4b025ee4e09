"""Register functions and rows of a program under names that a recipe can hold.

    with registering() as given:
        name = given.function(f)        "given:f", for task.verifiers
        path = given.rows(rows)         "given:5f3c…", for task.path

A run's recipe then records its functions and rows by name, and the same program can resume it. Without the program the
names cannot be resolved, and ``find_function`` and ``find_rows`` say so.

Left out: sending functions to verifier processes (``sandbox.pickling``), and the meaning of columns
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
    """The functions and tables passed to one call of the Python API."""

    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def function(self, function: Any) -> str:
        """Register a function or callable object and return its name; different functions of one name are numbered."""
        for name, known in self.functions.items():
            if known is function:
                return PREFIX + name
        stem = label(function)
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self.functions)
        self.functions[name] = function
        return PREFIX + name

    def rows(self, data: object) -> str:
        """Register a list of dicts, a frame, an Arrow table or a ``datasets.Dataset``; its name is its fingerprint.

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
    """Open a registry whose names can be resolved inside the block."""
    given = Registry()
    token = _given.set(given)
    try:
        yield given
    finally:
        _given.reset(token)


def find_function(name: str) -> Callable[..., Any]:
    """Return the function registered under ``name``.

    Raises:
        ConfigError: this program has registered none of that name.
    """
    given = _given.get()
    if given is None or name.removeprefix(PREFIX) not in given.functions:
        raise ConfigError(
            f"'{name}' is a function or class that a program gave to its run; only that program can go on with it, "
            "through heliostat.post_train(..., rewards=[function]), or environment= and tools="
        )
    return given.functions[name.removeprefix(PREFIX)]


def find_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows registered under ``name``.

    Raises:
        ConfigError: this program has registered none of that name.
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
"""Share of rows that is held out by default."""
SOURCE_KEYS = {"name", "label", "path", "heldout_path", "split", "heldout_split", "subset", "num_train", "num_heldout"}
"""Task keys about a recipe's own data, dropped when other data replaces it."""


def with_registered(
    recipe: Recipe,
    given: Registry,
    data: object,
    rewards: Sequence[Any],
    heldout: object = None,
    environment: object = None,
    tools: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return the recipe's tables with its tasks replaced by rows, its verifiers by functions, and its environment.

    Args:
        data: rows, or ``None`` for the recipe's own tasks.
        heldout: rows to evaluate on; ``None``: some of ``data``, or a split of it.
        rewards: functions, names of verifiers, or tables of either; empty: the recipe's own verifiers.
        environment: a name, a class or a factory; ``None``: the recipe's own.
        tools: functions, or names; empty: the recipe's own.
    """
    tables = recipe.model_dump(mode="json")
    if environment is not None:
        tables["environment"]["name"] = _name_of(given, environment)
    if tools:
        tables["environment"]["tools"] = [_name_of(given, tool) for tool in tools]
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


def _name_of(given: Registry, target: object) -> str:
    """Return the name of an environment or tool that a recipe can hold."""
    if not isinstance(target, str) and not callable(target):
        raise TypeError(f"an environment or tool is a name, a class or a function, got {target!r:.80}")
    return target if isinstance(target, str) else given.function(target)


def named(given: Registry, settings: Any) -> Any:
    """Replace functions in settings by their registered names."""
    if isinstance(settings, Mapping):
        return {key: named(given, value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [named(given, value) for value in settings]
    return given.function(settings) if callable(settings) else settings


def _task_of(given: Registry, data: object, heldout: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the table of a task, and the columns of the first row."""
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
    """Return the numbers of training and held-out problems for ``num`` rows."""
    num_heldout = max(1, min(MAX_HELDOUT, int(HELDOUT_SHARE * num)))
    return {"num_train": max(1, num - num_heldout), "num_heldout": num_heldout}


def _table(given: Registry, reward: object) -> dict[str, Any]:
    """Return the verifier table of a function, a name, or a table with either; functions see whole completions."""
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
    """Return rows of a frame, an Arrow table or a ``datasets`` data set, without the format of an array library.

    No such library is imported: each is recognized by its methods.
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
    """Return training and held-out rows: unchanged, or the splits of a ``DatasetDict`` (a dict of data sets).

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

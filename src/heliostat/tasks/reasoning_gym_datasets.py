"""List reasoning-gym's datasets, check their settings, and draw problems.

``main`` serves these functions over a connection, in an interpreter that ``sources.reasoning_gym`` starts
(``sandbox.interpreter`` says why). No model text is ever sent here, so both directions are pickled.

Left out: scoring (``verifiers.builtin``), and everything about splits that does not need the library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError, build_checked, nearest
from heliostat.tasks.answers import question_key

IDLE_S = 60.0  # the interpreter holds 110 MB; it ends after this long without a request, and is started again for one
_CHUNK = 1000  # problems per dataset instance: fixed, because some datasets depend on their size
_GIVE_UP = 500  # draws in a row without a new question, after which the dataset counts as exhausted
_OURS = ("seed", "size")  # settings of every dataset that the split decides

# Datasets whose entries carry no answer because many are right, but an example of one in the metadata.
_EXAMPLES: dict[str, str] = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}

Entry = dict[str, Any]


def main(connection_fd: int) -> None:
    """Answer ``(function name, arguments)`` with ``("", result)`` or ``(kind of error, message)``."""
    connection = Connection(connection_fd)
    gone = contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError)
    with gone, Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # some generators print dots
        while connection.poll(IDLE_S):
            name, arguments = connection.recv()
            connection.send(_answer(_SERVED[name], arguments))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "", function(*arguments)
    except (ConfigError, ValueError) as error:
        return type(error).__name__, str(error)
    except Exception:
        return "RuntimeError", traceback.format_exc()


def catalog() -> dict[str, str]:
    """Return every dataset's name with a one-line description."""
    return {name: _headline(*classes) for name, classes in sorted(_datasets().items())}


def describe(name: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a one-line description of a dataset, and its settings as (name, type, default)."""
    dataset_class, config_class = _find(name)
    fields = [
        (spec.name, spec.type if isinstance(spec.type, str) else _type_name(spec.type), _default(spec))
        for spec in dataclasses.fields(config_class)
        if spec.name not in _OURS
    ]
    return _headline(dataset_class, config_class), fields


def draw(name: str, settings: Mapping[str, Any], seed: int, num_heldout: int, num_train: int) -> list[list[Entry]]:
    """Draw held-out and training entries with pairwise different questions.

    The two come from disjoint streams of seeds, the held-out one first; training entries are filtered against it.

    Raises:
        ConfigError: no such dataset, or settings it does not have or does not accept.
        ValueError: the dataset ran out of different questions.
    """
    seen: set[str] = set()
    splits = []
    for split, wanted in (("heldout", num_heldout), ("train", num_train)):
        entries: list[Entry] = []
        barren, reason = 0, ""
        for entry, error in _stream(name, settings, f"{seed}/{split}"):
            if len(entries) == wanted or barren == _GIVE_UP:
                break
            key = question_key(entry["question"]) if entry is not None else ""
            if entry is None or key in seen:
                barren, reason = barren + 1, error or reason
                continue
            seen.add(key)
            entries.append(entry)
            barren = 0
        if len(entries) < wanted:
            raise ValueError(_exhausted(name, len(seen), num_heldout + num_train, reason))
        splits.append(entries)
    return splits


def open_dataset(name: str, settings: Mapping[str, Any], seed: int, size: int) -> Any:
    """Open a dataset with checked settings.

    Raises:
        ConfigError: an unknown name or key, a wrong type, or a value that the dataset refuses.
    """
    dataset_class, config_class = _find(name)
    for key in _OURS:
        if key in settings:
            raise ConfigError(f"task.settings.{key} is decided by the run's seed and the task's num_train, num_heldout")
    config = build_checked(config_class, settings, "task.settings")
    config = dataclasses.replace(config, seed=seed, size=size)
    try:
        return dataset_class(config)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"task.settings: {name} refuses them: {error}") from error


_SERVED: dict[str, Callable[..., Any]] = {function.__name__: function for function in (catalog, describe, draw)}


def _stream(name: str, settings: Mapping[str, Any], stream: str) -> Iterator[tuple[Entry | None, str]]:
    """Yield endless entries of one seed stream; ``None`` and the reason if the dataset fails to generate one."""
    for chunk in itertools.count():
        digest = hashlib.sha256(f"{stream}/{chunk}".encode()).digest()
        dataset = open_dataset(name, settings, seed=int.from_bytes(digest[:4], "big") >> 1, size=_CHUNK)
        for index in range(_CHUNK):
            try:
                yield _complete(dataset[index], name), ""
            except (ValueError, IndexError) as error:  # "no valid puzzle after 100 attempts" and the like
                yield None, f"{type(error).__name__}: {error}"


def _complete(entry: Entry, name: str) -> Entry:
    """Add an ``oracle`` to the entry: its answer, or an example of one."""
    oracle = entry["answer"] if entry["answer"] is not None else entry["metadata"].get(_EXAMPLES.get(name, ""))
    if oracle is not None and not isinstance(oracle, str):
        oracle = json.dumps(oracle)
    return entry | {"oracle": oracle}


def _exhausted(name: str, found: int, wanted: int, reason: str) -> str:
    because = f" ({reason})" if reason else ""
    return (
        f"reasoning-gym/{name} with these settings gave only {found} different questions{because}, but num_train + "
        f"num_heldout = {wanted}; lower them, or widen task.settings"
    )


def _datasets() -> dict[str, tuple[type[Any], type[Any]]]:
    try:
        import reasoning_gym
        import reasoning_gym.composite
    except ImportError as error:
        raise ConfigError("reasoning-gym tasks need its package: pip install reasoning-gym") from error
    datasets: dict[str, tuple[type[Any], type[Any]]] = reasoning_gym.factory.DATASETS
    return datasets


def _find(name: str) -> tuple[type[Any], type[Any]]:
    datasets = _datasets()
    if name not in datasets:
        raise ConfigError(
            f"unknown task 'reasoning-gym/{name}'{nearest(name, datasets)}; `heliostat tasks list` names all"
        )
    return datasets[name]


def _headline(dataset_class: type[Any], config_class: type[Any]) -> str:
    for documented in (dataset_class, inspect.getmodule(dataset_class), config_class):
        text = (getattr(documented, "__doc__", None) or "").strip()
        if text and not text.startswith(f"{config_class.__name__}("):  # the docstring that dataclass makes up
            return " ".join(text.split("\n\n")[0].split())
    return "(its authors say nothing about it)"


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def _default(spec: dataclasses.Field[Any]) -> str:
    if spec.default is not dataclasses.MISSING:
        return repr(spec.default)
    return repr(spec.default_factory()) if spec.default_factory is not dataclasses.MISSING else "(required)"

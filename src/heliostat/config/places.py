"""Files that a recipe names are searched for in the recipe's folder, wherever the command is started.

A relative path in a recipe file becomes absolute if the recipe's folder holds a file of that name; else it is relative
to the working directory. A trace bank that does not exist yet is created in the recipe's folder. Overrides are typed in
a shell and are relative to the working directory. Files written by ``dump_recipe`` are resolved already.

Left out: the contents of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

Layer = dict[str, Any]

_TASK_PATHS = ("path", "heldout_path")
_OWN_PARTS = (
    *(("objective", "name"), ("optimizer", "name"), ("judge", "name")),
    *(("rollout", "engine"), ("tracking", "trackers")),
)
"""Keys whose value may name a module of the user's, or several."""


def located(layer: Layer, folder: Path) -> Layer:
    """Resolve the files that a recipe's layer names against the recipe's ``folder``."""
    folder = folder.resolve()
    placed = {section: dict(content) if isinstance(content, dict) else content for section, content in layer.items()}
    traces, tasks = placed.get("traces"), placed.get("task")
    environment = placed.get("environment")
    for model in (placed.get("model"), placed.get("teacher"), placed.get("judge")):
        if isinstance(model, dict):
            _place(model, "path", folder)
    if isinstance(placed.get("judge"), dict):
        _place(placed["judge"], "rubric_file", folder)
    if isinstance(traces, dict):
        _place(traces, "bank", folder, to_make=True)
    if isinstance(environment, dict):
        _place_imports(environment, _environment_functions(environment), folder)
    for section, key in _OWN_PARTS:
        own = placed.get(section)
        if isinstance(own, dict):
            _place_imports(own, _names(_named(own.get(key))), folder)
    if isinstance(tasks, list):
        placed["task"] = [_placed_task(table, folder) for table in tasks]
    elif isinstance(tasks, dict):
        placed["task"] = {position: _placed_task(table, folder) for position, table in tasks.items()}
    return placed


def is_same_place(stored: object, asked: object) -> bool:
    """Whether the relative path of an older run is the end of the current absolute one."""
    if not (isinstance(stored, str) and isinstance(asked, str)) or not stored:
        return False
    old, new = PurePath(stored), PurePath(asked)
    return new.is_absolute() and not old.is_absolute() and new.parts[-len(old.parts) :] == old.parts


def _placed_task(table: Any, folder: Path) -> Any:
    if not isinstance(table, dict):
        return table
    placed = dict(table)
    for key in _TASK_PATHS:
        _place(placed, key, folder)
    _place_imports(placed, _functions(placed), folder)
    return placed


def _place_imports(table: Layer, functions: Iterator[str], folder: Path) -> None:
    """Import a table's functions from the recipe's folder if it holds their modules."""
    if "import_from" in table:
        _place(table, "import_from", folder)
    elif any(_is_module(name.partition(":")[0], folder) for name in functions):
        table["import_from"] = str(folder)


def _place(table: Layer, key: str, folder: Path, to_make: bool = False) -> None:
    value = table.get(key)
    if not isinstance(value, str) or not value or value.startswith(("~", "given:")) or Path(value).is_absolute():
        return
    beside = folder / value
    if beside.exists() or (to_make and not Path(value).exists()):
        table[key] = str(beside)


def _functions(task: Mapping[str, Any]) -> Iterator[str]:
    """List names like ``module:function`` in a task's table."""
    return _names([*_named(task.get("verifiers")), task.get("solution")])


def _environment_functions(environment: Mapping[str, Any]) -> Iterator[str]:
    """List names like ``module:Name`` in the environment's table."""
    tools = environment.get("tools")
    return _names([environment.get("name"), *(tools if isinstance(tools, list) else [])])


def _named(value: object) -> Iterator[object]:
    """List the names in a value: itself, or those of a list of names and tables."""
    for one in value if isinstance(value, list) else [value]:
        yield one.get("name") if isinstance(one, Mapping) else one


def _names(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str) and ":" in value)


def _is_module(name: str, folder: Path) -> bool:
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    file = folder.joinpath(*name.split("."))
    return file.with_name(f"{file.name}.py").is_file() or (file / "__init__.py").is_file()

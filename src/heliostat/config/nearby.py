"""What a recipe file names by relative paths, found from the file's own folder.

Rows and modules of reward functions stand beside the recipe more often than where the command is started. Both places
are searched, the recipe's folder first; what is found there and not started from there is written down with its whole
path, so that a run folder's recipe means the same wherever it is read.

Left out: what the paths mean (``heliostat.tasks``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heliostat.config.layers import Layer

PATHS = ("path", "heldout_path", "modules")
"""Keys of a task that hold paths; ``modules`` is the folder of its Python modules."""


def found_from(folder: Path, layer: Layer) -> Layer:
    """The layer with whole paths in place of those that lead from ``folder`` to something.

    Limits:
        In the working directory nothing changes, and neither does a path that leads nowhere from ``folder``.
    """
    folder = folder.resolve()
    if folder == Path.cwd().resolve() or "task" not in layer:
        return layer
    tasks = layer["task"]  # a list of tables, or tables by position
    if isinstance(tasks, list):
        return {**layer, "task": [_found(folder, task) for task in tasks]}
    return {**layer, "task": {position: _found(folder, task) for position, task in tasks.items()}}


def _found(folder: Path, task: Any) -> Any:
    if not isinstance(task, dict):
        return task
    whole = {key: str(folder / task[key]) for key in PATHS if _leads_somewhere(folder, task.get(key))}
    if "modules" not in task and any(_is_module(folder, name) for name in _modules(task)):
        whole["modules"] = str(folder)
    return {**task, **whole}


def _leads_somewhere(folder: Path, path: object) -> bool:
    return isinstance(path, str) and bool(path) and not Path(path).is_absolute() and (folder / path).exists()


def _modules(task: dict[str, Any]) -> Iterator[str]:
    """Modules that a task names: of its verifiers, and of its writer of solutions."""
    tables = task.get("verifiers")
    named = [table.get("name") for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []
    for name in (*named, task.get("solution")):
        if isinstance(name, str) and ":" in name:
            yield name.partition(":")[0]


def _is_module(folder: Path, module: str) -> bool:
    place = folder.joinpath(*module.split("."))
    return place.with_suffix(".py").is_file() or place.is_dir()

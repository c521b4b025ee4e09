"""Find classes and functions by name: ``module:Name``, and those that installed packages register as entry points.

    my_rewards:exact             a module beside the recipe, in the working directory, or installed
    my-objective                 a name that a package registers in the entry-point group ``heliostat.objectives``

This file imports the standard library only; packages' metadata is read when a name is looked up that is not built in.

Left out: what a name must be, which its caller checks.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from heliostat.nested_runs import NestedRun, importing


def registered(group: str) -> dict[str, str]:
    """List the names that installed packages register in an entry-point group, each with its ``module:Name``.

    Args:
        group: like ``heliostat.objectives``.
    """
    from importlib.metadata import entry_points  # reads the metadata of every installed package

    return {entry.name: entry.value for entry in sorted(entry_points(group=group))}


def resolve(path: str, folder: str = "") -> Callable[..., Any]:
    """Import the class or function ``module:Name``; ``folder`` and the working directory are searched too.

    The running script's own name resolves to the running module, not to a second copy.

    Raises:
        ValueError: there is no such module or name, in one sentence.
        NestedRun: the module starts a run when it is imported.
    """
    module_name, _, attribute = path.partition(":")
    search_in(folder)
    script = running_script(module_name)
    try:
        with importing(path):
            module = script or importlib.import_module(module_name)
            function = getattr(module, attribute, None)
    except NestedRun:
        raise
    except Exception as error:
        raise ValueError(f"cannot import '{module_name}' for '{path}': {type(error).__name__}: {error}") from error
    _check_home(module, folder)
    if not callable(function):
        running = "" if script is None else " (yet: it is the script that is running; define it before the run)"
        raise ValueError(f"'{path}': module '{module_name}' has no function '{attribute}'{running}")
    resolved: Callable[..., Any] = function
    return resolved


def search_in(folder: str) -> None:
    """Let imports find modules in the working directory and in ``folder``."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)


def _check_home(module: ModuleType, folder: str) -> None:
    """Refuse a module of another folder that took the name of one in ``folder``."""
    wanted = Path(folder, *module.__name__.split(".")).with_suffix(".py")
    file = getattr(module, "__file__", None)
    if folder and file and wanted.is_file() and Path(file).resolve() != wanted.resolve():
        raise ValueError(f"'{module.__name__}' means {wanted}, but {file} has that name in this program; rename one")


def running_script(module_name: str) -> ModuleType | None:
    """Return ``__main__`` if importing ``module_name`` would execute the same file once more."""
    main = sys.modules["__main__"]
    if module_name == "__main__" or getattr(main.__spec__, "name", None) == module_name:
        return main
    file = getattr(main, "__file__", None)
    if file is None or module_name in sys.modules:
        return None
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    is_same = spec is not None and spec.origin is not None and Path(spec.origin).resolve() == Path(file).resolve()
    return main if is_same else None

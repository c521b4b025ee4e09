"""Import classes and functions by name: ``module:Name``, or a name that an installed package declares.

    find("objective", "my_module:MyObjective", OBJECTIVES, folder)     from a file, or from an installed package
    find("objective", "sharp", OBJECTIVES)                             from the entry-point group heliostat.objectives

Built-in names come first, and an entry point cannot replace one. The metadata of installed packages is read only for a
name that is neither built in nor a ``module:Name``. Imports the standard library only.

Left out: what the imported object must be able to do (``conformance``), and its settings (the registries).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from heliostat.nested_runs import NestedRun, importing

GROUPS: dict[str, str] = {
    "objective": "heliostat.objectives",
    "optimizer": "heliostat.optimizers",
}
"""Entry-point group of each kind of part that a recipe can name."""


def find(kind: str, name: str, builtin: Mapping[str, Any], folder: str = "") -> Any:
    """Find the part of a kind that a recipe names.

    Args:
        kind: a key of ``GROUPS``.
        name: a built-in name, ``module:Name``, or the name of an entry point of the kind's group.
        builtin: the built-in parts by name.
        folder: folder that modules are imported from first; the working directory is searched too.

    Raises:
        ConfigError: there is none of this name, or it cannot be imported; one sentence that names the way out.
        NestedRun: the module starts a run when it is imported.
    """
    if name in builtin:
        return builtin[name]
    from heliostat.config import ConfigError, nearest

    if ":" in name:
        try:
            return resolve(name, folder)
        except NestedRun:
            raise
        except ValueError as error:
            found_in = f"; {kind}.import_from (now '{folder or '.'}') is the folder of the module"
            raise ConfigError(f"{kind}.name: {error}{found_in}") from error
    offered = [point for point in entry_points(group=GROUPS[kind]) if point.name not in builtin]
    matching = [point for point in offered if point.name == name]
    if not matching:
        names = [*builtin, *dict.fromkeys(point.name for point in offered)]
        raise ConfigError(
            f"unknown {kind} '{name}'{nearest(name, names)}; known: {', '.join(names)}; "
            f"your own: {kind}.name = 'my_module:MyClass'"
        )
    if len({point.value for point in matching}) > 1:
        packages = " and ".join(_package_of(point) for point in matching)
        raise ConfigError(f"{kind}.name = '{name}' is declared by {packages}; uninstall one, or name module:Name")
    try:
        return resolve(f"{matching[0].module}:{matching[0].attr}")
    except NestedRun:
        raise
    except ValueError as error:
        raise ConfigError(f"{kind}.name = '{name}' of the package {_package_of(matching[0])}: {error}") from error


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def resolve(path: str, folder: str = "") -> Callable[..., Any]:
    """Import the function or class ``module:name``; ``folder`` and the working directory are searched too.

    The running script's own name resolves to the running module, not to a second copy.

    Raises:
        ValueError: there is no such module or function, in one sentence.
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
    except (Exception, SystemExit) as error:  # a script without a guard may end the program
        raise ValueError(
            f"cannot import '{module_name}' for '{path}': {type(error).__name__}: {error}{_line_of(error)}"
        ) from error
    _check_home(module, folder)
    if not callable(function):
        running = "" if script is None else " (yet: it is the script that is running; define it before the run)"
        raise ValueError(
            f"'{path}': module '{module_name}' has no function '{attribute}'{running or _close_to(attribute, module)}"
        )
    resolved: Callable[..., Any] = function
    return resolved


def _line_of(error: BaseException) -> str:
    """Name the file and line at which a module failed; empty where no file was run."""
    if isinstance(error, SyntaxError):  # its message holds the file already
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_import_system(frame.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _is_import_system(file: str) -> bool:
    return file.startswith("<frozen importlib") or file == importlib.__file__


def _close_to(attribute: str, module: ModuleType) -> str:
    import difflib

    public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    matches = difflib.get_close_matches(attribute, public, n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


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

"""Import classes and functions by name: ``module:Name``, or a name that an installed package declares.

    find("objective", "my_module:MyObjective", OBJECTIVES, folder)     from a file, or from an installed package
    find("objective", "sharp", OBJECTIVES)                             from the entry-point group heliostat.objectives
    path_of("verifier", "rubric", VERIFIERS)                           the module:Name to import in another process

A name that is both shipped and declared by an installed package is refused, so that nobody trains with another part
than the one that was meant. Imports the standard library only.

Left out: what the imported object must be able to do (``conformance``), its settings (the registries), and the versions
that a run records (``extensions``).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from heliostat.nested_runs import NestedRun, importing


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of part that a recipe names.

    Attributes:
        setting: the recipe's key that holds the name.
        group: the entry-point group of installed packages.
        example: a name of a user's own.
    """

    setting: str
    group: str
    example: str = "my_module:MyClass"

    @property
    def folder_setting(self) -> str:
        """The recipe's key that holds the folder of a user's own module."""
        return f"{self.setting.partition('.')[0]}.import_from"


KINDS: dict[str, Kind] = {
    "objective": Kind("objective.name", "heliostat.objectives"),
    "optimizer": Kind("optimizer.name", "heliostat.optimizers"),
    "engine": Kind("rollout.engine", "heliostat.engines"),
    "verifier": Kind("task.verifiers", "heliostat.verifiers", "module:function"),
    "environment": Kind("environment.name", "heliostat.environments", "module:Name"),
    "tracker": Kind("tracking.trackers", "heliostat.trackers"),
    "judge": Kind("judge.name", "heliostat.judges"),
}
"""Every kind of part that can be named without being shipped."""


def find(kind: str, name: str, builtin: Mapping[str, Any], folder: str = "") -> Any:
    """Find the part of a kind that a recipe names.

    Args:
        kind: a key of ``KINDS``.
        name: a built-in name, ``module:Name``, or the name of an entry point of the kind's group.
        builtin: the built-in parts by name.
        folder: folder that modules are imported from first; the working directory is searched too.

    Raises:
        ConfigError: there is none of this name, or it cannot be imported; one sentence that names the way out.
        NestedRun: the module starts a run when it is imported.
    """
    path = path_of(kind, name, builtin)
    if not path:
        return builtin[name]
    try:
        return resolve(path, folder)
    except NestedRun:
        raise
    except ValueError as error:
        from heliostat.config import ConfigError

        if path != name:
            declared = _declared_by(kind, name)
            raise ConfigError(f"{KINDS[kind].setting} = '{name}' of {declared}: {error}") from error
        found_in = f"; {KINDS[kind].folder_setting} (now '{folder or '.'}') is the folder of the module"
        raise ConfigError(f"{KINDS[kind].setting}: {error}{found_in}") from error


def path_of(kind: str, name: str, builtin: Collection[str]) -> str:
    """Return the ``module:Name`` that a name stands for, without importing it; empty: a built-in part.

    Raises:
        ConfigError: nothing has this name, two packages declare it, or one does and it is built in.
    """
    if ":" in name:
        return name
    matching = declared(kind, name)
    if name in builtin and not matching:
        return ""
    from heliostat.config import ConfigError, nearest

    if not matching:
        names = list(dict.fromkeys([*builtin, *(point.name for point in _offered(kind))]))
        own = f"{KINDS[kind].setting} = '{KINDS[kind].example}'"
        raise ConfigError(
            f"unknown {kind} '{name}'{nearest(name, names)}; known: {', '.join(names)}; install the package that "
            f"declares it, or name your own: {own}"
        )
    path = f"{matching[0].module}:{matching[0].attr}"
    if name in builtin:
        raise ConfigError(
            f"{KINDS[kind].setting} = '{name}' is a shipped name, and {_declared_by(kind, name)} declares it "
            f"too; uninstall that, or name its {kind} as '{path}'"
        )
    if len({point.value for point in matching}) > 1:
        raise ConfigError(
            f"{KINDS[kind].setting} = '{name}' is declared by {_declared_by(kind, name)}; uninstall one, or name "
            "module:Name"
        )
    return path


def declared(kind: str, name: str) -> list[EntryPoint]:
    """Return the entry points of this name that installed packages declare; several packages may."""
    return [point for point in _offered(kind) if point.name == name]


def _offered(kind: str) -> list[EntryPoint]:
    return list(_installed_points(entry_points, _state_of_path()).select(group=KINDS[kind].group))


@lru_cache(maxsize=1)
def _installed_points(read: Callable[[], EntryPoints], path: Hashable) -> EntryPoints:
    """Read the entry points of all installed packages, which takes 50 ms, and a run asks a dozen times.

    Args:
        path: the state of ``sys.path``: a package installed since changes a folder's time.
    """
    return read()


def _state_of_path() -> Hashable:
    folders = [Path(entry or ".") for entry in sys.path]
    return tuple((folder, folder.stat().st_mtime_ns) for folder in folders if folder.exists())


def _declared_by(kind: str, name: str) -> str:
    """Name the packages that declare an entry point."""
    packages = [point.dist.name if point.dist is not None else point.module for point in declared(kind, name)]
    return " and ".join(f"the package {package}" for package in dict.fromkeys(packages))


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

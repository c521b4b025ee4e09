"""Pickle a user's function for the verifier processes, by value where they could not import it safely.

Functions of modules that a fresh interpreter finds (installed packages, and files on the path) are sent by reference.
The following are sent by value, with the globals and closed-over variables that they use:

    functions of the running script, a notebook, standard input or a multiprocessing child (``__main__``),
    lambdas, closures and callable objects, with or without decorators and functools.partial,
    functions of modules that a fresh interpreter does not find, that import parts of the script, or that start the
    run when imported.

Left out: calling the function in the worker (``verifiers.builtin``), and refusing runs there (``nested_runs``).
"""

from __future__ import annotations

import functools
import inspect
import io
import pickle
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

MAX_BYTES = 256 * 2**20
"""Maximum size of a pickled function; every verifier process holds a copy."""

_CACHED = type(functools.lru_cache(lambda: None))


def label(function: Callable[..., Any]) -> str:
    """Return a short name for a function or callable object."""
    if isinstance(function, functools.partial):
        return label(function.func)
    name = str(getattr(function, "__name__", type(function).__name__))
    return "lambda" if name == "<lambda>" else name


def dump_function(
    function: Callable[..., Any], noun: str = "reward function", process: str = "verifier process"
) -> bytes:
    """Pickle a function or class so that ``pickle.loads`` restores it in another process.

    Args:
        noun: what it is called in a message.
        process: the process that loads it, in a message.

    Raises:
        ValueError: something that it uses cannot be pickled, or is too large; names the variable.
    """
    with _strangers_by_value():
        try:
            content = _dumps(function)
            _check_loads(content)
        except Exception as error:
            name, value, reason = _culprit(function) or ("itself", function, error)
            raise ValueError(
                f"{noun} '{label(function)}' uses '{name}' ({type(value).__name__}), which cannot be sent to "
                f"{process}es ({_short(reason)}); make it inside the function, or put the function in a module "
                "of its own, which they import"
            ) from error
        if len(content) > MAX_BYTES:
            sizes = {name: len(_dumps(value)) for name, value in _variables(function)}
            name = max(sizes, key=lambda key: sizes[key], default="itself")
            raise ValueError(
                f"{noun} '{label(function)}' carries {len(content) / 2**20:.0f} MiB to each {process}, "
                f"most of it '{name}'; at most {MAX_BYTES / 2**20:.0f} are allowed: load it inside the function instead"
            )
    return content


def is_importable(module: ModuleType) -> bool:
    """Return whether a fresh interpreter with this one's path finds the same module under the same name."""
    name, file = module.__name__, getattr(module, "__file__", None)
    if name in ("__main__", "__mp_main__"):
        return False
    if name in sys.builtin_module_names or _is_installed(file):
        return True
    path: Any = None
    spec = None
    for depth in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:depth])
        spec = next(filter(None, (finder.find_spec(part, path) for finder in sys.meta_path)), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    found = None if spec is None else spec.origin
    return file is None or (found is not None and Path(found).resolve() == Path(file).resolve())


def _is_installed(file: str | None) -> bool:
    return file is not None and file.startswith(_installed_folders())


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    return tuple(sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib"))


def _holds_script(module: ModuleType) -> bool:
    """Return whether a module imports from the running script, which another process would have to run again."""
    main = sys.modules["__main__"]
    script = re.escape(Path(getattr(main, "__file__", None) or "__main__").stem)
    with suppress(OSError, TypeError):
        if re.search(rf"^\s*(from|import)\s+(__main__|{script})\b", inspect.getsource(module), re.MULTILINE):
            return True
    return any(
        value is main or getattr(value, "__module__", None) == "__main__" for value in list(vars(module).values())
    )


def _is_unfinished(module: ModuleType) -> bool:
    """Return whether a module's import is in progress, so that importing it elsewhere would run this code again."""
    return bool(getattr(module.__spec__, "_initializing", False))


def _is_own(name: str, module: object) -> bool:
    """Return whether a module is a file of the user's project, not installed, not heliostat and not the script."""
    if type(module) is not ModuleType or module.__name__ != name:
        return False
    file = getattr(module, "__file__", None)
    return file is not None and not _is_installed(file) and name.partition(".")[0] not in ("__main__", "heliostat")


@contextmanager
def _strangers_by_value() -> Iterator[None]:
    """Pickle functions by value inside the block if another process cannot import their modules."""
    import cloudpickle

    known = set(cloudpickle.list_registry_pickle_by_value())
    own = [module for name, module in list(sys.modules.items()) if name not in known and _is_own(name, module)]
    strangers = [
        module for module in own if _is_unfinished(module) or not is_importable(module) or _holds_script(module)
    ]
    for module in strangers:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in strangers:
            cloudpickle.unregister_pickle_by_value(module)


def _dumps(value: object) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # functools.lru_cache hides its function, and pickles as a name that only this process knows.
            if isinstance(obj, _CACHED) and obj.__module__ in (
                "__main__",
                *cloudpickle.list_registry_pickle_by_value(),
            ):
                return _cached, (obj.__wrapped__, obj.cache_parameters())
            if obj is sys.modules["__main__"]:
                raise pickle.PicklingError("it is the running script; take the names that are needed from it")
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _cached(function: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = functools.lru_cache(**settings)(function)
    return cached


class _NameCheck(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("__main__", "__mp_main__"):
            raise ValueError(f"'{name}' is known to this process only")
        return super().find_class(module, name)


def _check_loads(content: bytes) -> None:
    """Unpickle the function here, without access to this process's ``__main__``."""
    if len(content) <= MAX_BYTES:
        _NameCheck(io.BytesIO(content)).load()


def _variables(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables a function uses, with their names."""
    if isinstance(function, functools.partial):
        yield from ((f"argument {number}", value) for number, value in enumerate(function.args, start=1))
        yield from function.keywords.items()
        yield label(function.func), function.func
    elif isinstance(function, MethodType):
        yield "self", function.__self__
    elif isinstance(function, FunctionType):
        used = inspect.getclosurevars(function)
        yield from {**used.nonlocals, **used.globals}.items()
        signature = inspect.signature(function, follow_wrapped=False)
        defaults = {name: one.default for name, one in signature.parameters.items()}
        yield from ((name, value) for name, value in defaults.items() if value is not inspect.Parameter.empty)
        yield from vars(function).items()
    elif hasattr(function, "__dict__") and not isinstance(function, type | ModuleType):
        yield from vars(function).items()


def _culprit(function: Any, seen: tuple[int, ...] = ()) -> tuple[str, Any, Exception] | None:
    """Return the innermost named variable that cannot be pickled."""
    for name, value in _variables(function):
        if id(value) in seen:
            continue
        try:
            _check_loads(_dumps(value))
        except Exception as error:
            return _culprit(value, (*seen, id(function))) or (name, value, error)
    return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__

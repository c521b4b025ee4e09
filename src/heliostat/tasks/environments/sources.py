"""Find the class or factory that the description of an environment names.

Left out: making an environment of it (``building``), and recognising its shape (``adapters.recognition``).
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from heliostat.named_imports import declared, path_of, resolve, search_in
from heliostat.tasks.environments.adapters import gymnasium_text, openenv_server, skyrl_gym_class, textarena_game
from heliostat.tasks.environments.adapters.recognition import SKYRL_GYM_WITH_ROW, Shape, recognise
from heliostat.tasks.environments.adapters.registered import NotRegistered
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.tasks.environments.shipped import SHIPPED

_PACKAGES = {module.PREFIX: module for module in (gymnasium_text, skyrl_gym_class, textarena_game)}
_MAKE_SETTINGS = {gymnasium_text.PREFIX: frozenset({"max_episode_steps"})}


class UnknownName(ValueError):
    """No environment has the name; ``names`` are those that exist."""

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an environment comes from.

    Attributes:
        make: the class or factory; takes the settings.
        declares: the class or function whose parameters are the settings.
        shape: its kind; ``None``: told from the object that ``make`` returns.
        filled: parameters that have a value already.
        further: settings that ``make`` takes besides.
        is_cheap: whether its settings can be tried by making it in the program.
    """

    make: Callable[..., Any]
    declares: Callable[..., Any]
    shape: Shape | None
    filled: frozenset[str] = frozenset()
    further: frozenset[str] = frozenset()
    is_cheap: bool = False


def find_source(spec: EnvironmentSpec) -> Source | None:
    """Find the class or factory of a description; ``None``: it has tools alone.

    Raises:
        UnknownName: no environment has this name.
        ValueError: it cannot be imported, or is no environment; one sentence.
    """
    name = spec.name
    if not name and not spec.tools:
        raise ValueError("an environment needs a name, or tools")
    if not name:
        return None
    if name.startswith(openenv_server.PREFIX):
        url = name.removeprefix(openenv_server.PREFIX)
        make = functools.partial(openenv_server.OpenEnvServer, url)
        return Source(make, make, recognise(openenv_server.OpenEnvServer), is_cheap=True)
    for prefix in _PACKAGES:
        if name.startswith(prefix):
            return _find_registered(prefix, name.removeprefix(prefix), spec)
    if name not in SHIPPED and ":" not in name and not declared("environment", name):
        kinds = [*SHIPPED, "module:Name", *(f"{prefix}ID" for prefix in _PACKAGES), f"{openenv_server.PREFIX}URL"]
        raise UnknownName(f"unknown environment '{name}'; there are: {', '.join(kinds)}", SHIPPED)
    path = path_of("environment", name, SHIPPED)
    if not path:
        cls = resolve(SHIPPED[name])
        return Source(cls, cls, recognise(cls), is_cheap=True)
    target = find_object(spec, path)
    if isinstance(target, type):
        shape = recognise(target)
        is_skyrl_gym = shape.matches is skyrl_gym_class.matches
        return Source(target, target, SKYRL_GYM_WITH_ROW if is_skyrl_gym and _takes_row(target) else shape)
    return Source(target, target, SKYRL_GYM_WITH_ROW if _takes_row(target) else None)


def find_object(spec: EnvironmentSpec, name: str) -> Any:
    """Return the class or function that a description carries by value, or import it.

    Raises:
        ValueError: it cannot be loaded or imported; one sentence.
    """
    carried: dict[str, bytes] = pickle.loads(spec.content) if spec.content else {}
    if name not in carried:
        return resolve(name, spec.import_from)
    try:
        return pickle.loads(carried[name])
    except Exception as error:
        raise ValueError(f"cannot make '{name}' again: {type(error).__name__}: {error}") from error


def _find_registered(prefix: str, name: str, spec: EnvironmentSpec) -> Source:
    """Find an environment in the registry of its package."""
    package = prefix.removesuffix("/")
    if ":" in name:  # gymnasium's own form for a module that registers environments
        search_in(spec.import_from)
    try:
        found = _PACKAGES[prefix].find(name)
    except ImportError as error:
        raise ValueError(f"'{prefix}{name}' needs {package} ({error}): pip install {package}") from error
    except NotRegistered as error:
        known = [prefix + each for each in error.names]
        raise UnknownName(f"{package} has no environment '{name}'", known) from None
    shape = recognise(found.declares) if isinstance(found.declares, type) else None
    if _PACKAGES[prefix] is skyrl_gym_class and _takes_row(found.declares):
        shape = SKYRL_GYM_WITH_ROW
    return Source(found.make, found.declares, shape, found.filled, _MAKE_SETTINGS.get(prefix, frozenset()))


def _takes_row(target: Callable[..., Any]) -> bool:
    try:
        return skyrl_gym_class.takes_row(target)
    except (TypeError, ValueError):  # written in C
        return False

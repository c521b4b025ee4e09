"""An engine of a user's module or of an installed package, named by ``rollout.engine``.

    class MyEngine:
        def __init__(self, loaded, limits, **settings): ...      settings: rollout.engine_settings
        way = "my engine"                                        the rest is ``rollout.engine.Engine``

Left out: whether it samples the model's own distribution (``rollout.conformance``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from heliostat.config import ConfigError, RolloutSection
from heliostat.models import LoadedModel
from heliostat.rollout.completions import DecodeLimits
from heliostat.rollout.engine import Engine

METHODS = ("sample", "take_counts", "clone_for", "stop")
"""Methods that every engine has."""


def own_engine(section: RolloutSection, make: Callable[..., Any]) -> Callable[..., Engine]:
    """Return the function that builds a user's engine, once its class and settings have been checked.

    Args:
        make: the class, or a function that returns the engine; called with the model, the limits and the settings.

    Raises:
        ConfigError: it takes no such arguments, or lacks a method.
    """
    name = section.engine
    if isinstance(make, type):
        _check_methods(name, make)
    try:
        inspect.signature(make).bind(None, None, **section.engine_settings)
    except TypeError as error:
        raise ConfigError(
            f"rollout.engine = '{name}' is built as {name.rpartition(':')[2]}(loaded, limits, **settings), with the "
            f"settings of rollout.engine_settings, and does not take that: {error}"
        ) from error
    return functools.partial(_build, name, make, section.engine_settings)


def _build(
    name: str, make: Callable[..., Any], settings: dict[str, Any], loaded: LoadedModel, limits: DecodeLimits, *_: object
) -> Engine:
    try:
        engine: Engine = make(loaded, limits, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"rollout.engine = '{name}' cannot be built: {type(error).__name__}: {error}") from error
    _check_methods(name, engine)
    if not isinstance(getattr(engine, "way", None), str):
        raise ConfigError(f"rollout.engine = '{name}' needs the attribute way, a phrase for the run's summary")
    return engine


def _check_methods(name: str, engine: object) -> None:
    if missing := [method for method in METHODS if not callable(getattr(engine, method, None))]:
        raise ConfigError(
            f"rollout.engine = '{name}' is no engine: it lacks {', '.join(missing)} (heliostat.rollout.Engine)"
        )

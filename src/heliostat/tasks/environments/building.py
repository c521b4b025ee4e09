"""Build environments from their descriptions: shipped ones, a user's classes, and those of other packages.

    spec = check(describe(Maze, tools=[lookup], settings={"size": 5}))     in the program
    environment = build(spec)()                                            in an environment process

| name | environment |
|---|---|
| ``lookup`` … | a shipped one (``shipped.SHIPPED``) |
| ``module:Name`` | a class or factory of this package's, TRL's, skyrl-gym's, gymnasium's or textarena's kind |
| ``gymnasium/ID``, ``skyrl-gym/ID``, ``textarena/ID`` | one that the package has registered |
| ``openenv+http://host:port`` | an OpenEnv server |
| empty | the tools alone |

Left out: the processes (``pool``, ``worker``).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from heliostat.named_imports import resolve, running_script
from heliostat.tasks.environments.adapters import skyrl_gym_class
from heliostat.tasks.environments.adapters.recognition import Shape, recognise
from heliostat.tasks.environments.contract import Environment, EnvironmentSpec
from heliostat.tasks.environments.sources import Source, UnknownName, find_object, find_source
from heliostat.tasks.environments.tools import ToolBox, ToolEnvironment
from heliostat.tasks.sandbox.pickling import dump_function
from heliostat.tasks.verifiers.builtin import named, parameters

CALLS = "calls"
"""Setting with the form of tool calls, where the environment has no parameter of this name itself."""


def describe(
    environment: object = "",
    tools: Sequence[object] = (),
    settings: Mapping[str, Any] | None = None,
    import_from: str = "",
    **limits: Any,
) -> EnvironmentSpec:
    """Describe an environment so that another process can build it.

    Args:
        environment: a name (see above), or a class or factory itself.
        tools: ``module:function``, or functions themselves.
        settings: keyword arguments of the class.
        import_from: folder that modules are imported from, besides the working directory.
        limits: ``timeout_s``, ``memory_mb`` and ``num_workers``.

    Returns:
        The description. Classes and functions that another process cannot import by name, because they are defined in
        the running script or a notebook, are in ``content`` by value.

    Raises:
        ValueError: one of them cannot be imported, or cannot be sent to another process; one sentence.
    """
    carried: dict[str, bytes] = {}
    name = _name_of(environment, import_from, carried, "environment")
    names = tuple(_name_of(tool, import_from, carried, "tool") for tool in tools)
    content = pickle.dumps(carried) if carried else b""
    return EnvironmentSpec(name, names, dict(settings or {}), import_from, content, **limits)


def _name_of(given: object, folder: str, carried: dict[str, bytes], noun: str) -> str:
    if isinstance(given, str):
        module, _, attribute = given.partition(":")
        if not attribute.isidentifier() or running_script(module) is None:
            return given
        name, target = given, resolve(given, folder)
    elif callable(given):
        name, target = f"{given.__module__}:{getattr(given, '__qualname__', type(given).__name__)}", given
    else:
        raise ValueError(f"{given!r:.60} is no {noun}: give a name, a class or a function")
    carried[name] = dump_function(target, noun, "environment process")
    return name


def build(spec: EnvironmentSpec) -> Callable[[], Environment]:
    """Return a factory of the environment that ``spec`` describes; imports what it needs at once.

    Raises:
        ValueError: something cannot be imported, or is neither an environment nor a tool; one sentence.
    """
    tools = [find_object(spec, name) for name in spec.tools]
    source = find_source(spec)
    settings, calls = _split_calls(spec.settings, source)
    if source is None:
        box = ToolBox(tools, calls)
        return lambda: ToolEnvironment(box)
    return functools.partial(_make, source, settings, tools, calls)


def _make(source: Source, settings: Mapping[str, Any], tools: list[Callable[..., Any]], calls: str) -> Environment:
    make = functools.partial(source.make, **settings)
    if source.shape is not None:
        return source.shape.wrap(make, tools, calls)
    made = make()  # a function returned it: only the object tells the kind
    shape: Shape = recognise(made)
    return shape.wrap(lambda: made, tools, calls)


def _split_calls(settings: Mapping[str, Any], source: Source | None) -> tuple[dict[str, Any], str]:
    """Return the environment's own settings, and the form of tool calls."""
    rest = dict(settings)
    if source is not None and CALLS in _declared(source):
        return rest, "auto"
    return rest, str(rest.pop(CALLS, "auto"))


def check(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Refuse a description that no process could build an environment from; starts no process.

    Imports the class and the tools. Makes only shipped environments, whose constructors do nothing.

    Returns:
        The description with its settings converted to the declared types.

    Raises:
        ConfigError: a name, setting or tool is wrong; names the key, and the nearest one that exists.
    """
    from heliostat.config import ConfigError, nearest

    try:
        source = find_source(spec)
        tools = [find_object(spec, name) for name in spec.tools]
        checked = dataclasses.replace(spec, settings=_checked_settings(spec, source))
        settings, calls = _split_calls(checked.settings, source)
        ToolBox(tools, calls)
        if source is not None and source.is_cheap:
            source.make(**settings)
    except ConfigError:
        raise
    except UnknownName as error:
        raise ConfigError(f"environment.name: {error}{nearest(spec.name, error.names)}") from error
    except ValueError as error:
        raise ConfigError(f"environment: {error}") from error
    return checked


def _declared(source: Source) -> dict[str, inspect.Parameter]:
    """Return the parameters that are settings."""
    try:
        found = dict(named(source.declares))
    except (TypeError, ValueError):  # written in C
        return {}
    found.pop(skyrl_gym_class.EXTRAS, None)
    return found


def _checked_settings(spec: EnvironmentSpec, source: Source | None) -> dict[str, Any]:
    """Return the settings with their declared types.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    from heliostat.config import ConfigError, EnvironmentSection, nearest

    declared = {} if source is None else _declared(source)
    known = _known_settings(spec, source)
    name = spec.name or "the tools"
    for key in spec.settings:
        if key not in known and not (source and _takes_all(source)):
            places = [f"environment.{each}" for each in (*known, *EnvironmentSection.model_fields)]
            takes = ", ".join(sorted(known)) or "no settings"
            hint = nearest(f"environment.{key}", places)
            raise ConfigError(f"unknown key environment.{key}{hint}; {name} takes: {takes}")
    for key, parameter in declared.items():
        is_given = key in spec.settings or (source and key in source.filled)
        if parameter.default is parameter.empty and not is_given:
            raise ConfigError(f"environment.{key} is missing: {name} needs it")
    hints = {} if source is None else _hints(source.declares)
    return {key: _converted(key, value, hints.get(key, Any)) for key, value in spec.settings.items()}


def _known_settings(spec: EnvironmentSpec, source: Source | None) -> set[str]:
    """Return the keys that the environment takes, with that of the form of calls where there may be tools."""
    known = set() if source is None else {*_declared(source), *source.further}
    if spec.tools or (source is not None and (source.shape is None or source.shape.has_calls)):
        known.add(CALLS)
    return known


def _takes_all(source: Source) -> bool:
    try:
        return parameters(source.declares) is None
    except (TypeError, ValueError):
        return True


def _hints(declares: Any) -> dict[str, Any]:
    declares = declares.func if isinstance(declares, functools.partial) else declares
    try:
        return get_type_hints(declares.__init__ if isinstance(declares, type) else declares)  # type: ignore[misc]
    except Exception:  # a hint that only a type checker can read
        return {}


def _converted(key: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the type that the class declares; a type that pydantic does not know is left to the class."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    from heliostat.config import ConfigError
    from heliostat.config import describe as describe_error

    try:
        return TypeAdapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        raise ConfigError(describe_error(error, f"environment.{key}", value)) from None

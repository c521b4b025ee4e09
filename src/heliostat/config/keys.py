"""The dotted names of all settings: listed for help and docs, searched for the nearest one, checked for named things.

Left out: reading settings from anywhere (``layers``, ``recipes``).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from heliostat.config.errors import ConfigError, describe, nearest
from heliostat.config.sections.base import NamedSection, Section
from heliostat.config.sections.recipe import Recipe

T = TypeVar("T")

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "int",
    float: "float",
    bool: "true|false",
    tuple: "list",
    dict: "table",
}
_BOUND_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Key(NamedTuple):
    """One declared setting: dotted name, type with its bounds in words, default value, and meaning."""

    name: str
    type: str
    default: Any
    description: str


@functools.cache
def sections() -> dict[str, type[Section | NamedSection]]:
    """Map the names of a recipe's sections to their classes; ``task`` stands for each of its tables."""
    return {name: _section_class(spec.annotation) for name, spec in Recipe.model_fields.items()}


def field_of(dotted: str) -> FieldInfo | None:
    """Look up the declaration of ``section.key`` or ``task.1.key``; ``None`` if there is none."""
    section, _, key = dotted.partition(".")
    key = re.sub(r"^\d+\.", "", key) if section == "task" else key
    return sections()[section].model_fields.get(key) if section in sections() else None


def describe_sections() -> dict[str, str]:
    """Summarise each section, in recipe order, by the first line of its docstring."""
    return {name: (cls.__doc__ or "").partition("\n")[0] for name, cls in sections().items()}


@functools.cache
def describe_keys() -> tuple[Key, ...]:
    """List every declared setting, in recipe order.

    **Limits.** The keys of a named objective, optimizer or task are declared in the package that defines it, and are
    not listed here.
    """
    return tuple(
        Key(f"{section}.{key}", _type_text(spec), spec.get_default(call_default_factory=True), spec.description or "")
        for section, cls in sections().items()
        for key, spec in cls.model_fields.items()
    )


def suggest(dotted: str) -> str:
    """Suggest a key, as `` (did you mean 'section.key'?)``: the same key elsewhere, else the closest spelling."""
    names = [key.name for key in describe_keys()]
    section, _, last = dotted.rpartition(".")
    pools = (
        [name for name in names if name.rpartition(".")[2] == last],
        [name for name in names if name.startswith(section + ".")],
        names,
    )
    for pool, cutoff in zip(pools, (0.0, 0.6, 0.6), strict=True):
        if matches := difflib.get_close_matches(dotted, pool, n=1, cutoff=cutoff):
            return f" (did you mean '{matches[0]}'?)"
    # a bare or misplaced key: compare last parts only
    lasts = {name.rpartition(".")[2]: name for name in names}
    matches = difflib.get_close_matches(last, list(lasts), n=1, cutoff=0.6)
    return f" (did you mean '{lasts[matches[0]]}'?)" if matches else ""


def unknown_key(dotted: str) -> ConfigError:
    """Build the error for a key that no section declares."""
    section = dotted.partition(".")[0]
    if dotted.rpartition(".")[2] == "device":
        return ConfigError(
            f"unknown key {dotted}: a recipe names no device; runs use the CUDA GPU if there is one, else the CPU, and "
            "never Apple's MPS, on which Heliostat has not been run"
        )
    if hint := suggest(dotted):
        return ConfigError(f"unknown key {dotted}{hint}")
    if section in sections():
        return ConfigError(f"unknown key {dotted}; {section} takes: {', '.join(sections()[section].model_fields)}")
    return ConfigError(f"unknown key {dotted}; the sections are: {', '.join(sections())}")


def build_checked(cls: type[T], settings: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from user settings, with the same errors that a recipe section gives.

    Raises:
        ConfigError: a key is not a field of ``cls``, a value has the wrong type, or ``cls`` refused the values.
    """
    names = [spec.name for spec in dataclasses.fields(cls) if spec.init]  # type: ignore[arg-type]
    declared = list(sections()[where].model_fields) if where in sections() else []
    for key in settings:
        if key not in names:
            known = [f"{where}.{name}" for name in names + declared]
            takes = ", ".join(names) if names else "no settings"
            raise ConfigError(f"unknown key {where}.{key}{nearest(f'{where}.{key}', known)}; {where} takes: {takes}")
    try:
        return TypeAdapter(cls).validate_python(dict(settings))
    except ValidationError as error:
        raise ConfigError(describe(error, where, dict(settings))) from None


def _section_class(annotation: Any) -> type[Section | NamedSection]:
    cls: type[Section | NamedSection] = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return cls


def _type_text(spec: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in spec.metadata
        for name, sign in _BOUND_SIGNS.items()
        if hasattr(constraint, name)
    ]
    return " ".join([_annotation_text(spec.annotation), " and ".join(bounds)]).strip()


def _annotation_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return "|".join(_annotation_text(member) for member in get_args(annotation))
    return _TYPE_NAMES[origin or annotation]

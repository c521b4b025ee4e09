"""Settings laid over settings: a recipe file over the one it extends, and overrides over both, before any checking.

A layer is a table of tables as TOML gives it. Tables merge, everything else replaces. Two things need care:

- ``task`` is a list of tables. A layer may give the whole list, or single tables by position; a lone ``[task]`` table
  and ``--task.key`` mean the first.
- Some keys own other keys: ``name`` of an objective, optimizer or task owns the keys that are not declared, and
  ``model.path`` owns ``model.settings``. A layer that changes such a key drops the keys that the old value owned.

Left out: types and bounds (``sections``), and finding files (``recipes``).
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from heliostat.arguments import listed
from heliostat.config.errors import ConfigError
from heliostat.config.keys import field_of, sections, unknown_key
from heliostat.config.renamed import with_new_names
from heliostat.config.sections.base import NamedSection

Layer = dict[str, Any]

_OVERRIDE = re.compile(r"--([A-Za-z_]\w*(?:\.[\w-]+)+)(?:=(.*))?", re.DOTALL)
_BARE_FLOAT = re.compile(r"[+-]?(?:\d+\.|\.\d+)(?:[eE][+-]?\d+)?")  # 1. and .5 are numbers to people, not to TOML


def split_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take ``--section.key value`` and ``--section.key=value`` out of a command line.

    Returns:
        The overrides as raw text by dotted name (the last one wins), and the other arguments in order.

    Raises:
        ConfigError: an override has no value.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        match = _OVERRIDE.fullmatch(token)
        if match is None:
            others.append(token)
            continue
        key, value = match.groups()
        if value is None:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: --{key} VALUE")
            value = queue.pop(0)
        overrides[key] = value
    return overrides, others


def parse_value(text: str, dotted: str) -> Any:
    """Read a command-line value as TOML, or as a bare string where it is none or where the key holds text."""
    value: Any = text
    if _BARE_FLOAT.fullmatch(text):
        value = float(text)
    else:
        with contextlib.suppress(tomllib.TOMLDecodeError):
            parsed = tomllib.loads(f"value = {text}")
            if list(parsed) == ["value"] and isinstance(parsed["value"], bool | int | float | str | list | dict):
                value = parsed["value"]
    spec = field_of(dotted)
    return text if spec is not None and spec.annotation is str and not isinstance(value, str) else value


def layer_from(settings: Mapping[str, Any]) -> Layer:
    """Expand dotted names, sort ``task`` tables by position, replace old names of settings and refuse unknown keys.

    Args:
        settings: nested tables, dotted names (``{"task.1.name": "file"}``), or both.

    Raises:
        ConfigError: a key is unknown, or a value cannot be written in TOML.
    """
    layer: Layer = {}
    for dotted, value in settings.items():
        head, *rest = str(dotted).split(".")
        leaf = plain(value, dotted)
        if head == "task" and not rest and isinstance(leaf, list):
            layer["task"] = leaf
            continue
        path: list[str | int] = [head, *rest]
        if head == "task":
            path[1:] = [int(rest[0]), *rest[1:]] if rest and rest[0].isdigit() else [0, *rest]
        _merge_at(layer, path, leaf)
    layer = with_new_names(layer)
    _check_keys(layer)
    return layer


def merge(base: Layer, over: Layer) -> Layer:
    """Lay one layer over another; neither is changed.

    Raises:
        ConfigError: a task position lies beyond the end of the list.
    """
    merged = dict(base)
    for section, content in over.items():
        old = base.get(section)
        if section == "task" and isinstance(content, dict):
            merged["task"] = _merge_tasks(old if isinstance(old, list) else [], content)
        elif isinstance(old, dict) and isinstance(content, dict):
            merged[section] = _merge_section(section, old, content)
        else:
            merged[section] = content
    return merged


def plain(value: Any, dotted: str) -> Any:
    """Convert a value to the form that TOML gives: lists for tuples and arrays, text for paths.

    Raises:
        ConfigError: TOML cannot hold the value.
    """
    if hasattr(value, "tolist"):  # a number or an array of numpy, pandas or torch
        value = value.tolist()
    value = listed(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{dotted}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, dotted) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None:
        raise ConfigError(f"{dotted} = None: a recipe has no empty values; leave the key out to get its default")
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{dotted} is a {type(value).__name__}; a recipe holds numbers, text, true or false, lists "
                          "and tables")  # fmt: skip
    return value


def _check_keys(layer: Layer) -> None:
    for section, content in layer.items():
        cls = sections().get(section)
        if cls is None:
            first = next(iter(content), None) if isinstance(content, dict) else None
            raise unknown_key(section if first is None else f"{section}.{first}")
        if issubclass(cls, NamedSection):
            continue  # undeclared keys belong to the named thing
        for key in content if isinstance(content, dict) else ():
            if key not in cls.model_fields:
                raise unknown_key(f"{section}.{key}")


def _merge_at(layer: Any, path: list[str | int], leaf: Any) -> None:
    """Put a leaf into nested tables; a table joins the table that is there."""
    *parents, last = path
    for part in parents:
        if not isinstance(layer.get(part), dict):
            layer[part] = {}
        layer = layer[part]
    layer[last] = _merge_tables(layer[last], leaf) if isinstance(layer.get(last), dict) else leaf


def _merge_tables(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merge_tables(old.get(key), value) for key, value in new.items()}


def _merge_section(section: str, old: Layer, new: Layer) -> Layer:
    cls = sections()[section]
    chooser = "name" if issubclass(cls, NamedSection) else "path" if section == "model" else ""
    if chooser in new and new[chooser] != old.get(chooser, cls.model_fields[chooser].default):
        owned = {"settings"} if section == "model" else set(old) - set(cls.model_fields)
        old = {key: value for key, value in old.items() if key not in owned}
    return {**_merge_tables(old, new)}


def _merge_tasks(old: list[Any], over: dict[int, Any]) -> list[Any]:
    tasks = list(old)
    for position in sorted(over):
        if position > len(tasks):
            raise ConfigError(f"task.{position} skips task.{len(tasks)}: tasks are numbered from 0 without gaps")
        table = over[position]
        if position == len(tasks):
            tasks.append(table)
        elif isinstance(tasks[position], dict) and isinstance(table, dict):
            tasks[position] = _merge_section("task", tasks[position], table)
        else:
            tasks[position] = table
    return tasks

"""Recipes by name or path: read, extended, overridden, checked, and written back.

A run folder stands for the resolved recipe in it. A file may begin with ``extends = "demo"``: the name of a shipped
recipe, or a path relative to the file. Files and modules that it names are searched for in its own folder first
(``places``).

Left out: the rules by which layers merge (``layers``) and the settings themselves (``sections``).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from heliostat.arguments import PathArg, as_path, as_text
from heliostat.config.errors import ConfigError, describe, nearest
from heliostat.config.layers import Layer, layer_from, merge, parse_value, split_overrides
from heliostat.config.places import located
from heliostat.config.sections.recipe import Recipe

Overrides = Sequence[str] | Mapping[str, Any]

_SHIPPED = files("heliostat") / "recipes"
_RESOLVED = "# A resolved recipe: its paths are those that were used.\n"


def recipe_names() -> list[str]:
    """List the names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".toml"))


def recipe_text(name_or_path: PathArg) -> str:
    """Read the TOML text of a shipped recipe or of a file.

    Raises:
        ConfigError: there is no such recipe; names the nearest shipped one.
    """
    name_or_path = as_text(name_or_path)
    if name_or_path in recipe_names():
        return (_SHIPPED / f"{name_or_path}.toml").read_text(encoding="utf-8")
    path = Path(_recipe_file(name_or_path))
    if path.suffix != ".toml" and not path.is_file():
        raise ConfigError(
            f"unknown recipe '{name_or_path}'{nearest(name_or_path, recipe_names())}; "
            f"shipped: {', '.join(recipe_names())}; your own: a path that ends in .toml, or a run folder"
        )
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe file {path}: {error}") from None


def is_recipe(name: PathArg) -> bool:
    """Whether a name means a recipe: a shipped one, a TOML file or a run folder."""
    name = as_text(name)
    return name in recipe_names() or _recipe_file(name).endswith(".toml")


def _recipe_file(name_or_path: str) -> str:
    """Return the file of the recipe that ran, if this is a run folder; else the argument."""
    file = Path(name_or_path).expanduser() / "recipe.toml"
    return str(file) if file.is_file() else name_or_path


def load_recipe(name_or_path: PathArg, overrides: Overrides = ()) -> Recipe:
    """Read a recipe, apply overrides and check the result. Files are searched for in its folder (``places``).

    Args:
        name_or_path: a shipped recipe's name, the path of a TOML file, or a run folder.
        overrides: command-line arguments (``["--train.num_steps", "50"]``), or settings by dotted name or as tables.

    Raises:
        ConfigError: one line that names the recipe or key and the nearest valid one.

    **Limits.** ``load_recipe(name)`` equals ``build_recipe`` of the file's tables, in the file's folder; overriding a
    key with the value it has changes nothing; ``load_recipe`` of a file written by ``dump_recipe`` gives an equal one.
    """
    return _validate(functools.reduce(merge, [*_layers(as_text(name_or_path)), _override_layer(overrides)], _empty()))


def parse_recipe(text: str, folder: PathArg) -> Recipe:
    """Build the recipe of a TOML text as if it stood in a file of ``folder``.

    Raises:
        ConfigError: one line that names the key and the nearest valid one.
    """
    return _validate(merge(_empty(), located(layer_from(tomllib.loads(text)), as_path(folder))))


def build_recipe(settings: Mapping[str, Any] | None = None, overrides: Overrides = ()) -> Recipe:
    """Build a recipe from tables or dotted names, over the defaults.

    Raises:
        ConfigError: one line that names the key and the nearest valid one.
    """
    return _validate(functools.reduce(merge, [layer_from(settings or {}), _override_layer(overrides)], _empty()))


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as TOML text with every key; ``load_recipe`` reads it back as an equal recipe."""
    import tomli_w

    return _RESOLVED + tomli_w.dumps(layer_from(recipe.model_dump()))


def _empty() -> Layer:
    return {"task": [{}]}


def _validate(layer: Layer) -> Recipe:
    try:
        return Recipe.model_validate(layer)
    except ValidationError as error:
        line = describe(error, data=layer)
        single = isinstance(layer["task"], list) and len(layer["task"]) == 1
        raise ConfigError(line.replace("task.0.", "task.", 1) if single else line) from None


def _override_layer(overrides: Overrides) -> Layer:
    if isinstance(overrides, Mapping):
        return layer_from(overrides)
    if isinstance(overrides, str):
        raise ConfigError(f"overrides must be a list of arguments or a table, not the string {overrides!r}")
    found, others = split_overrides([as_text(one) for one in overrides])
    if others:
        raise ConfigError(f"'{others[0]}' is not an override; they look like --section.key value")
    return layer_from({dotted: parse_value(text, dotted) for dotted, text in found.items()})


def _layers(name_or_path: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """List the layers of the recipes that this one extends, and then its own."""
    shipped = name_or_path in recipe_names()
    name_or_path = name_or_path if shipped else _recipe_file(name_or_path)
    identity = name_or_path if shipped else str(Path(name_or_path).resolve())
    if identity in seen:
        raise ConfigError(f"{name_or_path} extends itself: {' -> '.join((*seen, identity))}")
    text = recipe_text(name_or_path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name_or_path} is not valid TOML: {error}") from None
    base = tables.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{name_or_path}: extends must be the name or path of one recipe")
    try:
        layer = layer_from(tables)
    except ConfigError as error:
        raise ConfigError(str(error) if shipped else f"{name_or_path}: {error}") from None
    if not shipped and not text.startswith(_RESOLVED):
        layer = located(layer, Path(name_or_path).parent)
    if base is None:
        return [layer]
    if base.endswith(".toml") and not shipped:
        base = str(Path(name_or_path).parent / base)
    return [*_layers(base, (*seen, identity)), layer]

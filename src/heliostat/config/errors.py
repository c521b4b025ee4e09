"""The error of a wrong setting: one exception, and one plain line for each problem that the validator finds.

Left out: the keys (``keys``) and their checks (``sections``).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN = 60  # characters of a wrong value that an error message repeats

_NOUNS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a table",
    "model": "a table",
    "dataclass": "a table",
}
_TYPE_COMPLAINTS = ("type", "parsing", "parsing_size", "from_float", "attributes_type")
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class ConfigError(ValueError):
    """A setting is unknown, ill-typed or contradicts another; the message is one line for the user."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Suggest the closest choice, as `` (did you mean 'x'?)`` or an empty string."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def describe(error: ValidationError, where: str = "", data: Any = None) -> str:
    """Format the first problem of a pydantic error as one line: ``optimizer.lr = -1: must be greater than 0``.

    Args:
        error: pydantic's error.
        where: dotted name of the part of the recipe that was validated; empty for a whole recipe.
        data: the validated input, if at hand; needed to tell a key from the name of a member of a union of types.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    loc = _loc_in(data, first)
    dotted = ".".join(str(part) for part in ((where,) if where else ()) + loc)
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{dotted}: {message}" if dotted else message
    if first["type"] == "missing":
        return f"{dotted} is missing"
    # each member of a union reports an error at the same place in the input
    wanted = dict.fromkeys(_wanted(problem) for problem in problems if _loc_in(data, problem) == loc)
    message = "must be " + " or ".join(wanted) + _nearest_literal(first)
    return f"{dotted} = {show(first['input'])}: {message}" if dotted else message


def named_by(setting: str, error: ConfigError) -> ConfigError:
    """Return the error of a model that another setting than ``model.path`` names."""
    said = str(error)
    own = "model.path "
    return ConfigError(f"{setting} {said.removeprefix(own)}" if said.startswith(own) else f"{setting}: {said}")


def show(value: Any) -> str:
    """Format a setting as in TOML, shortened to fit on a line."""
    text = str(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _wanted(problem: ErrorDetails) -> str:
    """Describe the accepted values, in words that follow "must be"."""
    kind, _, complaint = problem["type"].partition("_")
    if kind in _NOUNS and complaint in _TYPE_COMPLAINTS:
        return _NOUNS[kind]
    if problem["type"] in _BOUNDS:
        limit, words = _BOUNDS[problem["type"]]
        return f"{words} {problem['ctx'][limit]:g}"
    if problem["type"] == "too_short":
        return f"a list of at least {problem['ctx']['min_length']}"
    return problem["msg"].removeprefix("Input should be ")


def _nearest_literal(problem: ErrorDetails) -> str:
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return ""
    return nearest(problem["input"], problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))


def _loc_in(data: Any, problem: ErrorDetails) -> tuple[int | str, ...]:
    """Return the part of a problem's location that names a key; pydantic appends the names of union members."""
    loc = tuple(problem["loc"])
    if data is None or problem["type"] == "missing":
        return loc
    for depth, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return loc[:depth]
    return loc

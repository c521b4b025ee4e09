"""Recognise the shape of a class or object by its methods, and wrap it in this package's contract.

Left out: the shapes themselves (the other files here), and finding the class (``sources``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.tasks.environments.adapters import duck_typed, gymnasium_text, skyrl_gym_class, textarena_game, trl_class
from heliostat.tasks.environments.contract import Environment
from heliostat.tasks.environments.tools import ToolBox, WithTools

Make = Callable[..., Any]
Tools = Sequence[Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of class that can serve as an environment.

    Attributes:
        name: what its classes are called.
        matches: whether a class or an object is of this kind.
        wrap: makes the environment from a constructor that needs no arguments, added tools, and the form of calls.
        has_calls: whether its own methods are tools.
    """

    name: str
    matches: Callable[[Any], bool]
    wrap: Callable[[Make, Tools, str], Environment]
    has_calls: bool = False


def _is_ours(subject: Any) -> bool:
    return issubclass(subject if isinstance(subject, type) else type(subject), Environment)


def _with_tools(environment: Environment, tools: Tools, calls: str) -> Environment:
    return WithTools(environment, ToolBox(tools, calls)) if tools else environment


def _object_in(adapter: Callable[[Any], Environment]) -> Callable[[Make, Tools, str], Environment]:
    """Return the ``wrap`` of a shape whose object serves one episode after the other."""
    return lambda make, tools, calls: _with_tools(adapter(make()), tools, calls)


def _skyrl_gym(takes_row: bool) -> Callable[[Make, Tools, str], Environment]:
    return lambda make, tools, calls: _with_tools(skyrl_gym_class.SkyRLGym(make, takes_row), tools, calls)


def _trl(make: Make, tools: Tools, calls: str) -> Environment:
    return trl_class.TRLClass(make(), tools, calls)


SKYRL_GYM_WITH_ROW = Shape("skyrl-gym", skyrl_gym_class.matches, _skyrl_gym(takes_row=True))
"""Classes and factories that take the data row as ``extras``."""

SHAPES = (
    Shape("heliostat", _is_ours, _object_in(lambda made: made)),
    Shape("skyrl-gym", skyrl_gym_class.matches, _skyrl_gym(takes_row=False)),
    Shape("textarena", textarena_game.matches, _object_in(textarena_game.TextArenaGame)),
    Shape("gymnasium", gymnasium_text.matches, _object_in(gymnasium_text.GymnasiumText)),
    Shape("reset and step", duck_typed.matches, _object_in(duck_typed.DuckTyped)),
    Shape("TRL", trl_class.matches, _trl, has_calls=True),
)
"""In the order in which they are tried: TRL's ``reset`` alone would match most others."""


def recognise(subject: Any) -> Shape:
    """Return the shape of a class or an object.

    Raises:
        ValueError: it has none, in one sentence.
    """
    for shape in SHAPES:
        if shape.matches(subject):
            return shape
    name = getattr(subject, "__name__", type(subject).__name__)
    raise ValueError(
        f"'{name}' is no environment: it needs reset(problem, seed) and step(action), or reset(**row) and public "
        "methods with types and docstrings as for TRL, or the methods of skyrl-gym, gymnasium or textarena"
    )

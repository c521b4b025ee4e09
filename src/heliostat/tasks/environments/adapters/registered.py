"""An environment in the registry of its package, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered environment.

    Attributes:
        make: the package's constructor by name; takes settings.
        declares: the class whose parameters are the settings.
        filled: parameters that the registration fills, so that a recipe need not.
    """

    make: Callable[..., Any]
    declares: Callable[..., Any]
    filled: frozenset[str]


class NotRegistered(LookupError):
    """The package has no environment of this name; ``names`` are those that it has."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("no such environment")
        self.names = names

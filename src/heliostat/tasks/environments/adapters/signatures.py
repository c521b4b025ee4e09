"""The parameters of methods, by which classes of other packages are recognised.

Left out: the shapes themselves (the adapters).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def method_parameters(subject: Any, method: str) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a method of a class or an object without ``self``; ``None``: it has no such method."""
    function = getattr(subject, method, None)
    if not callable(function):
        return None
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return {}
    if isinstance(subject, type) and not isinstance(
        inspect.getattr_static(subject, method), staticmethod | classmethod
    ):
        parameters.pop(next(iter(parameters), ""), None)
    return parameters


def by_position(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the names of the parameters that may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def base_packages(subject: Any) -> set[str]:
    """Return the packages that a class, or an object's class, and its bases come from."""
    cls = subject if isinstance(subject, type) else type(subject)
    return {base.__module__.partition(".")[0] for base in cls.__mro__}

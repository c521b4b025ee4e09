"""Arguments of public functions in the forms that programs have: paths as text or objects, one of a thing or several.

    PathArg      the annotation of a path: text, or any ``os.PathLike``
    as_path      a path as a ``Path``, with ``~`` expanded
    as_text      a name, a path or an address as text, unchanged
    paths        one path, or any iterable of them, as a list
    texts        an iterable of strings as a list; a single string is refused
    listed       an iterator as a list; sequences, arrays and tensors as they are

Left out: the meaning of a name (a recipe, a model, a file), which belongs to the function that takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

PathArg = str | os.PathLike[str]

T = TypeVar("T")


def as_text(path: PathArg) -> str:
    """Return a name, path or address as text."""
    return os.fspath(path)


def as_path(path: PathArg) -> Path:
    """Return a path with ``~`` expanded."""
    return Path(path).expanduser()


def paths(given: PathArg | Iterable[PathArg]) -> list[PathArg]:
    """Return one path as a list of one, or several as a list."""
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def listed(values: T | Iterator[Any]) -> T | list[Any]:
    """Return an iterator's values as a list, so that they can be counted and read twice; anything else unchanged."""
    return list(values) if isinstance(values, Iterator) else values


def texts(given: Iterable[str], name: str) -> list[str]:
    """Return several strings as a list.

    Raises:
        TypeError: it is a single string, whose characters nobody means.
    """
    if isinstance(given, str):
        raise TypeError(f"{name} takes several strings, and got one: {name}=[{given!r:.60}]")
    return list(given)

"""Results as an interpreter and a notebook show them: one short line, and a small HTML table.

    @dataclass(frozen=True, slots=True, repr=False)
    class Counts(Card): ...

A card shows a dataclass's fields: numbers as they are, tensors by dtype and shape, long collections by their length.
Classes with a better sentence replace ``card_line`` or ``card_rows``. Text is escaped in HTML, and control characters
are escaped everywhere. Tables set no colours, so that they follow a notebook's light or dark theme, and load nothing.

Left out: the page of a run (``report``), and tables on a terminal (``cli.tables``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from html import escape
from os import PathLike
from typing import Any

LINE = 300
"""Characters of a ``repr``, at most."""
VALUE = 60
"""Characters of one field in it, at most."""
FEW = 4
"""Items of a collection that are written out."""


class Card:
    """Base of result dataclasses: a ``repr`` of one line, and a table of the fields in notebooks."""

    __slots__ = ()

    def card_line(self) -> str:
        """Return the fields in one line, without the class's name; empty ones are omitted."""
        return ", ".join(f"{name}={value}" for name, value in _fields(self))

    def card_rows(self) -> Iterable[Sequence[str]]:
        """Return the rows of the table."""
        return _fields(self)

    def __repr__(self) -> str:
        head = f"{type(self).__name__}("
        return f"{head}{clipped(_visible(self.card_line()), LINE - len(head) - 1)})"

    def _repr_html_(self) -> str:
        return table((type(self).__name__, ""), self.card_rows())


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """Return rows of text under a head, with a note below."""
    top = "".join(f"<th>{_escaped(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = f"<p>{_escaped(note)}</p>" if note else ""
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{below}"


def clipped(text: str, most: int) -> str:
    """Return text of at most ``most`` characters; a longer one ends in an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def brief(value: Any) -> str:
    """Describe a value in a few words: a number, the shape of a tensor, the length of a collection."""
    return clipped(_described(value), VALUE)


def _described(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value[:VALUE])[:-1] + "…" if len(value) > VALUE else repr(value)
    if isinstance(value, PathLike):
        return str(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping):
        return _collection([f"{brief(key)}: {brief(one)}" for key, one in _first(value.items())], len(value), "{}")
    if isinstance(value, list | tuple | AbstractSet):
        kind = type(next(iter(value))).__name__ if value else ""
        return _collection([brief(one) for one in _first(value)], len(value), "()", kind)
    if isinstance(value, Card):
        return repr(value)
    return type(value).__name__


def _first(values: Iterable[Any]) -> list[Any]:
    return [one for one, _ in zip(values, range(FEW + 1), strict=False)]


def _collection(shown: Sequence[str], num: int, brackets: str, kind: str = "items") -> str:
    text = ", ".join(shown).join(brackets)
    return text if num <= FEW and len(text) <= VALUE else f"{num} × {kind}"


def _array(value: Any) -> str:
    shape = tuple(value.shape)
    if not shape:
        return f"{value.item():.4g}"
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}]"


def _fields(card: Any) -> list[tuple[str, str]]:
    """List the names and descriptions of fields that hold something."""
    values = [(one.name, getattr(card, one.name)) for one in dataclasses.fields(card) if one.repr]
    return [(name, brief(value)) for name, value in values if not _is_empty(value)]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping | AbstractSet) and not value)


def _visible(text: str) -> str:
    """Write control and invisible characters as their escapes."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _escaped(text: str) -> str:
    return escape("\n".join(_visible(line) for line in text.split("\n")))

r"""Untrusted text made fit to be shown: what a terminal would obey, or a reader could not see, becomes visible.

Newline and tab stay; every other character that is no sign is shown in its place: C0 controls as their pictures (an
escape byte as ␛, a carriage return as ␍), and other controls, bidirectional overrides, zero-width and invisible
characters, line separators and lone surrogates as their escapes (``\u202e``).

Left out: HTML (``report.html.markup`` marks the same characters), and rich's own consoles (``terminal``).
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

_KEPT = "\n\t"
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # marks and letters without a glyph


def visible(text: str) -> str:
    """``text`` with every character shown, on as many lines as it has.

    **Limits**: what is visible already comes back as it is, so doing it twice is doing it once.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in _KEPT else _shown(character) for character in text)


def visible_line(text: str) -> str:
    """``visible`` text on one line: every run of whitespace becomes a space."""
    return visible(" ".join(text.split()))


def is_hidden(character: str) -> bool:
    """Whether ``visible`` shows another character in the place of this one."""
    return character not in _KEPT and _shown(character) != character


def say(text: object, file: TextIO | None = None) -> None:
    """Print ``text`` made visible, by default on standard output."""
    print(visible(str(text)), file=sys.stdout if file is None else file)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    if character in _BLANK or unicodedata.category(character) in _HIDDEN_CATEGORIES:
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character

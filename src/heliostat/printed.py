r"""Safe printing of untrusted text: control characters and invisible characters are made visible.

Newline and tab stay. C0 controls are shown as their pictures: an escape byte as ␛, a carriage return as ␍. Other
controls, bidirectional overrides, zero-width and invisible characters, line separators and lone surrogates are shown as
their escapes (``\u202e``).

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
    """Make every character of ``text`` visible; lines stay lines.

    **Limits**: visible text is returned unchanged, so that a second call has no effect.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in _KEPT else _shown(character) for character in text)


def visible_line(text: str) -> str:
    """Make ``text`` visible on one line: every run of whitespace becomes a space."""
    return visible(" ".join(text.split()))


def is_hidden(character: str) -> bool:
    """Return whether ``visible`` replaces this character."""
    return character not in _KEPT and _shown(character) != character


def say(text: object, file: TextIO | None = None) -> None:
    """Print ``text``, made visible, by default on standard output."""
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

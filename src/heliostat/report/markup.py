"""HTML by construction: text is escaped unless it is already ``Html``, so model output can never become markup.

Left out: parsing, templates, and checking that an element may stand where it is put.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any, TypeAlias

VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})

# Control characters are shown as their pictures (an escape byte as ␛): invisible text in a transcript is a trap.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"


def escape(text: str) -> Html:
    """Any text as markup that shows exactly that text.

    Raises nothing: control characters become control pictures and lone surrogates the replacement character.
    """
    if isinstance(text, Html):
        return text
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return Html(html.escape(encodable.translate(CONTROL_PICTURES), quote=True))


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """One element; ``class_`` and ``aria_label`` spell ``class`` and ``aria-label``; ``None`` and ``False`` vanish."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Markup of nested children, one after the other."""
    if children is None:
        return Html("")
    if isinstance(children, str):
        return escape(children)
    if isinstance(children, int):
        return Html(str(children))
    return Html("".join(join(child) for child in children))


def data_script(identifier: str, data: Any) -> Html:
    """Data for the page's script, as JSON in which no character can end the script element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Html(text), type="application/json", id=identifier)


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'

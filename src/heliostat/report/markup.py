"""HTML by construction: text is escaped unless it is already ``Html``, so model output can never become markup.

Left out: parsing, templates, and checking that an element may stand where it is put.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from heliostat.printed import is_hidden, visible

TEXT_ONLY = frozenset({"title", "text", "tspan", "desc", "option", "textarea", "script", "style"})
"""Elements in which no other of HTML may stand: those of the head, of forms, and of drawings."""
VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})

# Control characters are shown as their pictures (an escape byte as ␛): invisible text in a transcript is a trap.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"


def escape(text: str) -> Html:
    """Any text as markup that shows exactly that text, whose characters all remain in it.

    A character that nobody could see, or that would turn the text around it (bidirectional overrides, zero-width
    characters), stands in an element of its own that isolates it and shows its number. Raises nothing: control
    characters become control pictures and lone surrogates the replacement character.
    """
    if isinstance(text, Html):
        return text
    encodable = _encodable(text)
    if encodable.isascii():
        return Html(html.escape(encodable, quote=True))
    return Html("".join(_piece("".join(run), hidden) for hidden, run in itertools.groupby(encodable, is_hidden)))


def plain(text: str) -> Html:
    r"""The same where no element may stand: hidden characters become escapes (``\u202e``)."""
    return text if isinstance(text, Html) else Html(html.escape(visible(_encodable(text)), quote=True))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").translate(CONTROL_PICTURES)


def _piece(text: str, hidden: bool) -> str:
    """Text without hidden characters; or such characters alone, each isolated, with its number for the style sheet."""
    if not hidden:
        return html.escape(text, quote=True)
    return "".join(f'<bdi class="unseen" data-code="U+{ord(one):04X}">{one}</bdi>' for one in text)


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """One element; ``class_`` and ``aria_label`` spell ``class`` and ``aria-label``; ``None`` and ``False`` vanish."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(children, plain if name in TEXT_ONLY else escape)}</{name}>")


def join(children: Child, as_markup: Callable[[str], Html] = escape) -> Html:
    """Markup of nested children, one after the other.

    Args:
        as_markup: of children that are text.
    """
    if children is None:
        return Html("")
    if isinstance(children, str):
        return as_markup(children)
    if isinstance(children, int):
        return Html(str(children))
    return Html("".join(join(child, as_markup) for child in children))


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
    return f" {name}" if value is True else f' {name}="{plain(str(value))}"'

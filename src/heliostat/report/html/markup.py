"""Text as markup that shows exactly that text, templates that escape by themselves, and elements for drawings.

Pages are jinja2 templates (``templates/``) with autoescape on. ``_Context`` adds two rules to jinja2's own. Every
expression is escaped for its place: hidden characters of foreign text stand in elements of their own between tags, and
become escapes inside a tag or in an element that takes text alone. A line break in a template, with the indentation
after it, is not part of the page.

Left out: parsing, and checking that an element may stand where it is put.
"""

from __future__ import annotations

import functools
import html
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from heliostat.printed import is_hidden, visible

TEXT_ONLY = frozenset({"title", "text", "tspan", "desc", "option", "textarea", "script", "style"})
"""Elements in which no other of HTML may stand: those of the head, of forms, and of drawings."""
VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})

NUM_COLOURS = 6
"""Colours of the style sheet, ``c1`` to ``c6``; a page with more runs begins again."""

# Control characters are shown as their pictures (an escape byte as ␛): invisible text in a transcript is a trap.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}

Html = Markup
"""Text that is already markup."""

Child: TypeAlias = "str | int | Iterable[Child] | None"


def escape(text: str) -> Html:
    """Return any text as markup that shows exactly that text, whose characters all remain in it.

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
    r"""Escape text for a place where no element may stand: hidden characters become escapes (``\u202e``)."""
    return text if isinstance(text, Html) else Html(html.escape(visible(_encodable(text)), quote=True))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").translate(CONTROL_PICTURES)


def _piece(text: str, hidden: bool) -> str:
    """Escape text without hidden characters; or isolate each of them, with its number for the style sheet."""
    if not hidden:
        return html.escape(text, quote=True)
    return "".join(f'<bdi class="unseen" data-code="U+{ord(one):04X}">{one}</bdi>' for one in text)


def data_script(identifier: str, data: Any) -> Html:
    """Return data for the page's script, as JSON in which no character can end the element or open a comment.

    Raises:
        ValueError: the data holds a number that JSON cannot say.
    """
    text = htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)
    return element("script", text, type="application/json", id=identifier)


# -- templates ---------------------------------------------------------------------------------------------------------


def fill(template: str, /, **values: Any) -> Html:
    """Fill a template of ``templates/``; values that are not ``Html`` are escaped.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    return Html(environment().get_template(template).render(**values))


@functools.cache
def environment() -> Environment:
    """Return the environment of all templates."""
    environment = Environment(
        loader=PackageLoader("heliostat.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        extensions=[_Context],
        auto_reload=False,
    )
    environment.filters["plain"] = lambda value: plain(_text(value))
    environment.filters["colour"] = lambda index: f"c{index % NUM_COLOURS + 1}"
    return environment


def _finalized(value: object) -> Html:
    return escape(_text(value))


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value)


class _Context(Extension):
    """Joins the lines of a template, and escapes expressions inside tags and text-only elements with ``plain``."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"\s*\n\s*", "", source)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        tag, is_open = "", False
        for token in stream:
            if token.type == "data":
                for bracket in re.finditer(r"<(/?\w*)|>", token.value):
                    is_open = bracket[0] != ">"
                    tag = bracket[1].lower() if is_open else tag
            takes_text_alone = is_open or tag in TEXT_ONLY
            if takes_text_alone and token.type == "variable_end":
                yield Token(token.lineno, "rparen", ")")
                yield Token(token.lineno, "pipe", "|")
                yield Token(token.lineno, "name", "plain")
            yield token
            if takes_text_alone and token.type == "variable_begin":
                yield Token(token.lineno, "lparen", "(")


# -- drawings ----------------------------------------------------------------------------------------------------------


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Return one element; ``class_`` and ``aria_label`` spell ``class`` and ``aria-label``; ``None``, ``False`` vanish.

    For drawings, whose elements are computed one by one; everything else is a template.
    """
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(children, plain if name in TEXT_ONLY else escape)}</{name}>")


def join(children: Child, as_markup: Callable[[str], Html] = escape) -> Html:
    """Return the markup of nested children, one after the other.

    Args:
        as_markup: escapes children that are text.
    """
    if children is None:
        return Html("")
    if isinstance(children, str):
        return as_markup(children)
    if isinstance(children, int):
        return Html(str(children))
    return Html("".join(join(child, as_markup) for child in children))


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{plain(str(value))}"'

r"""Turn formulas into MathML while the site is built, so that pages need no script and no request to show them.

``pymdownx.arithmatex`` marks ``$...$`` and ``$$...$$`` as ``\(...\)`` and ``\[...\]``; browsers draw MathML themselves.
Left out: macros, and numbered equations.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """Called by mkdocs with every page's HTML."""
    return _FORMULA.sub(_mathml, page_html)


def _mathml(match: re.Match[str]) -> str:
    return convert(html.unescape(match[3]).strip(), display="inline" if match[2] == "(" else "block")

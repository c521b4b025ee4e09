"""The frame of every page: head, navigation and foot, with style and script inline, written in one piece.

A content policy in the page forbids every request and every script but the page's own, which is named by its hash: a
transcript that found a way past the escaping could still not run. Left out: what stands in the frame.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import heliostat
from heliostat.outputs import check_replaceable
from heliostat.report.markup import Html, data_script, element
from heliostat.storage import publish_file

LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><circle cx="24" cy="7" r="4.5" class="sun"/>'
    '<path d="M20.5 10.5 12 19M12 19 5.5 6" class="ray"/><path d="M5 15.5 19.5 22.5" class="mirror"/>'
    '<path d="M12 20.5V29M7 29h10" class="stand"/></svg>'
)


MARK = "Written by Heliostat"
"""In the footer of every page; a file without it is not written over."""


def framed(title: str, main: Html, anchors: Sequence[str], hover: Mapping[str, Any]) -> str:
    """A whole page.

    Args:
        main: its ``main`` element.
        anchors: sections that the navigation links to.
        hover: by chart, what its hover values are read from.
    """
    folder = files("heliostat.report")
    style, script = (Html(folder.joinpath(name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title} · Heliostat"),
        element("style", style),
    )
    top = element(
        "div",
        element("span", Html(LOGO), "Heliostat", class_="brand"),
        element("nav", [element("a", name.capitalize(), href=f"#{name}") for name in anchors], aria_label="Sections"),
        element("button", "Theme", id="theme", type="button", hidden=True),
        class_="top",
    )
    foot = element("footer", f"{MARK} {heliostat.__version__}. This page is one file and makes no requests.")
    body = element("body", top, main, foot, data_script("figures", hover), element("script", script))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def write_page(target: Path, page: str) -> Path:
    """Write a page whole, or not at all.

    Raises:
        ConfigError: a file that no page of ours is stands there.
    """
    check_replaceable(target, MARK, "a page")
    target.parent.mkdir(parents=True, exist_ok=True)
    publish_file(target, page)
    return target


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"

"""The frame of every page: head, navigation and foot, with style and script inline, written in one piece.

A content policy in the page forbids every request and every script but the page's own, which is named by its hash. A
transcript that got past the escaping could still not run.

Left out: the content of the frame.
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
from heliostat.report.html.markup import Html, data_script, fill
from heliostat.storage import publish_file

MARK = " · Heliostat</title>"
"""In the head of every page, within reach of ``check_replaceable``; a file without it is not written over."""


def framed(title: str, main: Html, anchors: Sequence[str], hover: Mapping[str, Any], strip: Html | None = None) -> str:
    """Write a whole page.

    Args:
        main: the page's ``main`` element.
        anchors: sections that the navigation links to.
        hover: by chart, the data of its hover values.
        strip: the state of a run, for a page that asks the server that it came from for newer ones.
    """
    style, script = _text("style.css"), _text("page.js")
    if strip is not None:
        style, script = style + _text("live.css"), script + _text("live.js")
    page = fill(
        "frame.html",
        title=title,
        policy=policy(script, asks=strip is not None),
        style=style,
        anchors=anchors,
        main=main,
        version=heliostat.__version__,
        figures=data_script("figures", hover),
        strip=strip,
        script=script,
    )
    return f"<!doctype html>\n{page}\n"


def write_page(target: Path, page: str) -> Path:
    """Write a page whole, or not at all.

    Raises:
        ConfigError: the target exists and is not a page of this package.
    """
    check_replaceable(target, MARK, "a page")
    target.parent.mkdir(parents=True, exist_ok=True)
    publish_file(target, page)
    return target


def policy(script: str, asks: bool = False) -> str:
    """Write the content policy of a page with one script.

    Args:
        asks: whether the page may ask the server that it came from.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    own = "; connect-src 'self'" if asks else ""
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:{own}"


def _text(name: str) -> Html:
    return Html(files("heliostat.report.html").joinpath(name).read_text(encoding="utf-8"))

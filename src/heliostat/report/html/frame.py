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


def framed(title: str, main: Html, anchors: Sequence[str], hover: Mapping[str, Any]) -> str:
    """Write a whole page.

    Args:
        main: the page's ``main`` element.
        anchors: sections that the navigation links to.
        hover: by chart, the data of its hover values.
    """
    folder = files("heliostat.report.html")
    style, script = (Html(folder.joinpath(name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    page = fill(
        "frame.html",
        title=title,
        policy=_policy(script),
        style=style,
        anchors=anchors,
        main=main,
        version=heliostat.__version__,
        figures=data_script("figures", hover),
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


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"

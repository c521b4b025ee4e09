"""Show functions of the package in pages, read from the source while the site is built.

A line ``{{ source heliostat.train.trainer.Trainer.step }}`` becomes the definition as it stands in the source. A
name that does not exist ends the build.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pkgutil import resolve_name
from typing import Any

_SOURCE = re.compile(r"^\{\{ source ([\w.]+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace source lines in a page; mkdocs calls this with every page's text."""
    return _SOURCE.sub(lambda match: _listing(match[1]), markdown)


def _listing(name: str) -> str:
    code = textwrap.dedent(inspect.getsource(resolve_name(name))).rstrip()
    return f"```python\n{code}\n```"

"""Results as a notebook shows them: a small HTML table. Text is escaped: names and reasons are other people's.

Left out: the page of a run (``report``), and tables on a terminal (``cli.tables``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """Return rows of text under a head, with a note below."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{below}"

"""Names in a model card: no folder, host or markup gets in, wherever a text comes from.

Left out: free text (system messages, templates, error messages), which cards do not show at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from heliostat.printed import visible_line

_MAX_CHARACTERS = 100
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CHOICE = re.compile(r"[A-Za-z][\w.-]*")
_NO_NAME = re.compile(r"|\.+|~.*|[A-Za-z][A-Za-z0-9+.-]*:")  # empty, dots, a home folder, a drive or a scheme


def last_part(text: str) -> str:
    """Return the last component of a path or URL in any notation; names that show no folder are returned as they are.

    Drives, home folders, hosts, and the queries of URLs are no components.

    **Limits**: empty where nothing is left; ``last_part(last_part(text)) == last_part(text)``.
    """
    text = visible_line(text)
    while (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)) is not None:
        try:
            text = urlsplit(text).path
        except ValueError:
            text = text[scheme.end() :].partition("/")[2]
    parts = re.split(r"[\\/]", text)
    if re.match(r"\\\\|//", text):
        parts = parts[3:]  # the first one is a host
    named = [part.strip() for part in parts if not _NO_NAME.fullmatch(part.strip())]
    return named[-1] if named else ""


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form of a hub id: ``gpt2`` or ``owner/name``."""
    return _HUB_ID.fullmatch(text) is not None


def is_choice(text: str) -> bool:
    """Return whether a text is a single word, like the name of a choice in a recipe."""
    return _CHOICE.fullmatch(text) is not None


def name_in_code(text: str) -> str:
    """Format the last component of a path, or any other name, as code."""
    return f"`{plain_name(text) or 'unnamed'}`"


def id_in_code(hub_id: str) -> str:
    """Format a hub id as code; a text of another form is shown as its last component."""
    return f"`{hub_id[:_MAX_CHARACTERS]}`" if is_hub_id(hub_id) else name_in_code(hub_id)


def plain_name(text: str) -> str:
    """Return the last component of a path, or any other name, on one short line in which no character is markup."""
    return re.sub(r"[`|<>\[\]*#]", "_", last_part(text))[:_MAX_CHARACTERS]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows of Markdown as a table."""
    lines: tuple[Sequence[str], ...] = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

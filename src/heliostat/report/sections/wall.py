"""A wall of the latest completions, with repeated words marked: loops are seen sooner than they are measured.

A word is marked where it belongs to a run of four that the same text has had before. Everything here is untrusted text
and is escaped. Left out: choosing by result; the first ones of the latest evaluation are shown.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from heliostat.monitors.repetition import loop_period, repeated_share
from heliostat.report.html.markup import Html, element, fill, join
from heliostat.report.runs.read import Run, Transcript

NUM_SHOWN = 8
MAX_CHARACTERS = 1200
NGRAM = 4
_TOKEN = re.compile(r"\w+|[^\w\s]")


def wall(run: Run) -> Html | None:
    """Show the first completions of the run's latest evaluation; ``None`` where it kept none."""
    if not run.transcripts:
        return None
    last = max(row.step for row in run.transcripts)
    rows = [row for row in run.transcripts if row.step == last][:NUM_SHOWN]
    return fill("wall.html", tiles=[_tile(row) for row in rows])


def _tile(row: Transcript) -> dict[str, Any]:
    tokens = _TOKEN.findall(row.written)
    numbers: dict[str, int] = {}
    loops = loop_period([numbers.setdefault(token, len(numbers)) for token in tokens]) is not None
    share = repeated_share(tokens, NGRAM)
    facts = ["ends in a loop" if loops else None, f"{share:.0%} repeated" if share else None]
    return {
        "name": row.problem_id.removeprefix(f"{row.task}/"),
        "success": row.success,
        "loops": loops,
        "text": join(marked(row.written[:MAX_CHARACTERS])),
        "facts": [fact for fact in facts if fact],
    }


def marked(text: str) -> list[Html | str]:
    """Return the text with repeated words inside ``mark`` elements; its characters are unchanged."""
    places = [match.span() for match in _TOKEN.finditer(text)]
    words = [text[start:end] for start, end in places]
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(words)
    for index in range(len(words) - NGRAM + 1):
        gram = tuple(words[index : index + NGRAM])
        if gram in seen:
            repeated[index : index + NGRAM] = [True] * NGRAM
        seen.add(gram)
    flags = bytearray(len(text))
    for (start, end), again in zip(places, repeated, strict=True):
        flags[start:end] = bytes([again]) * (end - start)
    for (_, end), (start, _), first, second in zip(places, places[1:], repeated, repeated[1:], strict=False):
        if first and second:  # the space between two marked words belongs to the mark
            flags[end:start] = b"\x01" * (start - end)
    parts: list[Html | str] = []
    position = 0
    for flag, run in groupby(flags):
        length = len(list(run))
        piece = text[position : position + length]
        parts.append(element("mark", piece) if flag else piece)
        position += length
    return parts

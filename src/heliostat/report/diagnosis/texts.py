"""Measures of a few transcripts without a tokenizer: loops, repetition, and one answer for every question.

Words and signs stand for tokens here, so the shares differ from those of a run's own log.

Left out: quality; a text that passes may still be nonsense.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.cards import Card
from heliostat.monitors.repetition import compressed_share, distinct_share, loop_period, repeated_share

TEXT_KEYS = ("completion", "response", "output", "answer_text", "text", "generated_text")
PROMPT_KEYS = ("prompt", "question", "instruction", "input", "problem_id")
_TOKEN = re.compile(r"\w+|[^\w\s]")

MAX_LOOPS = 0.1
MAX_REPEATED = 0.5
MAX_SAME = 0.5
MIN_TEXTS = 4


@dataclass(frozen=True, slots=True, repr=False)
class TextReport(Card):
    """The faults and the measurements of texts, a sentence each."""

    complaints: tuple[str, ...]
    facts: tuple[str, ...]


def words(text: str) -> list[str]:
    """Split a text into words and signs."""
    return _TOKEN.findall(text)


def examine_texts(rows: Sequence[Mapping[str, Any]]) -> TextReport:
    """Measure the texts of rows, in any of the columns ``TEXT_KEYS``.

    Raises:
        ValueError: no row has a text.
    """
    pairs = [(str(_first(row, PROMPT_KEYS) or ""), str(text)) for row in rows if (text := _first(row, TEXT_KEYS))]
    if not pairs:
        raise ValueError(f"no row has a text under any of {', '.join(TEXT_KEYS)}, nor metrics beside a step")
    tokens = [words(text) for _, text in pairs]
    loops = sum(loop_period(_numbered(text)) is not None for text in tokens) / len(tokens)
    repeated = _mean([share for text in tokens if (share := repeated_share(text, 4)) is not None])
    zipped = _mean([share for _, text in pairs if (share := compressed_share(text)) is not None])
    same, sameness = _same_answer(pairs)
    length = _mean([float(len(text)) for text in tokens])
    facts = [
        f"{len(pairs)} texts of {length:.0f} words on average: rep-4 {repeated:.1%}, in loops {loops:.1%}, distinct-1 "
        f"{distinct_share(tokens, 1) or 0:.1%}, compressed to {zipped:.1%}."
    ]
    complaints = []
    if loops > MAX_LOOPS:
        complaints.append(f"{loops:.0%} of the texts end in a loop.")
    if repeated > MAX_REPEATED:
        complaints.append(f"{repeated:.0%} of the 4-word runs were written before in the same text.")
    if sameness > MAX_SAME:
        complaints.append(f"{sameness:.0%} of different prompts get the same text, “{same[:60]}”: a template.")
    return TextReport(tuple(complaints), tuple(facts))


def _same_answer(pairs: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Return the most common text and the share of prompts that get it; 0 for fewer than ``MIN_TEXTS`` prompts."""
    by_prompt = {prompt: text.strip() for prompt, text in pairs}
    if len(by_prompt) < MIN_TEXTS:
        return "", 0.0
    text, count = Counter(by_prompt.values()).most_common(1)[0]
    return text, count / len(by_prompt)


def _numbered(text: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(word, len(numbers)) for word in text]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key)), None)

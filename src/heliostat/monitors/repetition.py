"""Repetition in a text: n-grams, loops, compression. Exact counts on token ids or words.

Left out: selecting texts (``diversity``), and judging the metrics (``guard``).

References: Welleck et al. 2020, arXiv 1908.04319 (rep-n); Li et al. 2016, arXiv 1510.03055 (distinct-n).
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

LOOP_WINDOW = 256
MAX_PERIOD = 64
LOOP_MATCH = 0.9
MIN_LOOP_TOKENS = 32
"""Shorter endings are not called loops: a table of numbers repeats as much without anything being wrong."""


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    """List all runs of ``n`` neighbours, in order."""
    return zip(*(tokens[offset:] for offset in range(n)), strict=False)


def repeated_share(tokens: Sequence[Hashable], n: int) -> float | None:
    """Compute rep-n: ``1 - unique n-grams / n-grams``; ``None`` where there are fewer than ``n`` tokens.

    **Limits** All tokens different: 0. One token ``m`` times: ``1 - 1/(m - n + 1)``.
    """
    total = len(tokens) - n + 1
    return 1.0 - len(set(ngrams(tokens, n))) / total if total > 0 else None


def loop_period(tokens: Sequence[int]) -> int | None:
    """Find the period of the loop that a text ends in, or ``None``.

    The last ``LOOP_WINDOW`` tokens loop with period ``p <= MAX_PERIOD`` if more than ``LOOP_MATCH`` of them equal the
    token ``p`` places before; the smallest such period counts.

    **Limits** Fewer than ``MIN_LOOP_TOKENS`` tokens never loop. A window holds at least two periods.
    """
    if len(tokens) < MIN_LOOP_TOKENS:
        return None
    tail = tokens[-LOOP_WINDOW:]
    # A loop has few different 4-grams: those of one period, and four for every mismatch. Most texts end here.
    longest = min(MAX_PERIOD, len(tail) // 2)
    mismatches = (1 - LOOP_MATCH) * len(tail)
    if len(set(ngrams(tail, 4))) > longest + 4 * mismatches:
        return None
    window = np.asarray(tail)
    for period in range(1, longest + 1):
        if float(np.mean(window[period:] == window[:-period])) > LOOP_MATCH:
            return period
    return None


def distinct_share(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Compute distinct-n over several texts: unique n-grams over n-grams, ``None`` without any.

    It falls with length; compare at equal lengths only.

    **Limits** One text: ``1 - rep-n``. The same text ``k`` times: a ``k``-th of that of one.
    """
    total = sum(max(0, len(text) - n + 1) for text in texts)
    return len(set().union(*(ngrams(text, n) for text in texts))) / total if total else None


def compressed_share(text: str) -> float | None:
    """Compute bytes after zlib over bytes before; low where a text repeats itself. ``None`` for an empty text."""
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw, 1)) / len(raw) if raw else None

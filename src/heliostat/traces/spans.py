"""Find the longest prefix of a stored turn that does not reveal its answer, and does not end the turn.

The answer begins at its first occurrence, unless the question contains it too. Otherwise, and at the latest, it begins
after the last answer marker, or at a restatement right before the marker.

Left out: asking the verifier whether a prefix alone earns the reward, which ``train.data.prefixes`` does as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set

Decode = Callable[[Sequence[int]], str]


def answer_start(text: str, answer: str | None, question: str, answer_after: str) -> int | None:
    """Return the position in ``text`` where the answer begins; ``None`` if it cannot be determined.

    Args:
        text: a whole assistant turn.
        answer: the oracle answer, if there is one.
        question: the question; an answer that it contains is not revealed by an early occurrence.
        answer_after: the marker that the answer follows; empty: there is none.

    Limits:
        Without marker, and with an answer that ``text`` does not contain, there is no position.
    """
    starts = []
    if answer_after and answer_after in text:
        starts.append(text.rindex(answer_after) + len(answer_after))
    if answer:
        said = list(re.finditer(rf"(?<![\w.]){re.escape(answer)}(?!\w)", text))
        if said and not re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)", question):
            starts.append(said[0].start())
        elif said:
            starts.append(_restated(text, answer, min(starts, default=said[-1].start())))
    return min(starts, default=None)


def _restated(text: str, answer: str, start: int) -> int:
    """Move ``start`` back over statements of the answer that end right before it (``105-3=102`` and then ``= 102``)."""
    while match := re.search(rf"(?<![\w.]){re.escape(answer)}[\s.,;:=]*$", text[:start]):
        start = match.start()
    return start


def longest_prefix(
    turn_ids: Sequence[int], decode: Decode, start: int | None, eos_ids: Set[int], max_tokens: int
) -> int:
    """Return the largest number of a turn's tokens that neither reveal the answer nor end the turn.

    Args:
        decode: ids to text; more ids never give less text.
        start: where in the turn's text the answer begins; ``None`` forbids any prefix.
        max_tokens: room in the context.

    Returns:
        A number of tokens below ``len(turn_ids)``, 0 where nothing may be given.
    """
    if start is None:
        return 0
    ends = [index for index, token in enumerate(turn_ids) if token in eos_ids]
    low, high = 0, min([len(turn_ids) - 1, max_tokens, *ends])
    while low < high:  # the largest number of tokens whose text ends before the answer
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(decode(turn_ids[:middle])) <= start else (low, middle - 1)
    return max(0, low)

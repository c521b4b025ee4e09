"""Where in a completion the answer is.

Left out: judging it (``verifiers.builtin``). Imported by workers: the standard library only.
"""

from __future__ import annotations


def find_answer(completion: str, answer_after: str) -> str | None:
    """What follows the last ``answer_after`` in ``completion``, stripped; ``None`` if the marker is missing.

    Limits:
        An empty marker gives the whole completion, stripped.
    """
    if not answer_after:
        return completion.strip()
    _, marker, answer = completion.rpartition(answer_after)
    return answer.strip() if marker else None


def question_key(text: str) -> str:
    """What makes two questions the same question: their text, differences in whitespace aside."""
    return " ".join(text.split())

"""Find the answer in a completion.

Left out: judging it (``verifiers.builtin``). Imported by workers, so it imports the standard library only.
"""

from __future__ import annotations


def find_answer(completion: str, answer_after: str) -> str | None:
    """Return the text after the last ``answer_after`` in ``completion``, stripped; ``None`` if the marker is missing.

    Limits:
        An empty marker gives the whole completion, stripped.
    """
    if not answer_after:
        return completion.strip()
    _, marker, answer = completion.rpartition(answer_after)
    return answer.strip() if marker else None


def question_key(text: str) -> str:
    """Return a key that is equal for questions that differ only in whitespace."""
    return " ".join(text.split())

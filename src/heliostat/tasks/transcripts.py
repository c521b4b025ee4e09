"""A transcript: an episode of several turns as one text, in which it is certain who wrote each line.

    assistant: get 37
    environment: 52
    assistant: say 52

Left out: where an episode's texts come from (``heliostat.train.judges.episodes``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from heliostat.types import Turn

ASSISTANT, ENVIRONMENT = "assistant", "environment"
"""The sides of an episode, as labels of their parts."""

_INDENT = "  "


class Transcript(str):
    """An episode as a text, with its parts.

    Attributes:
        parts: the side and the text of every turn and every answer, in order.

    **Limits** A line that begins with a label begins a part: further lines of a part are indented, whatever ends its
    lines, so that neither side can write a part of the other. Transcripts with other parts are other texts.
    """

    __slots__ = ("parts",)
    parts: tuple[tuple[str, str], ...]

    def __new__(cls, parts: Sequence[tuple[str, str]]) -> Transcript:
        """Write the parts below each other."""
        made = super().__new__(cls, "\n".join(f"{side}: {_indented(text)}" for side, text in parts))
        made.parts = tuple(parts)
        return made

    def __getnewargs__(self) -> tuple[tuple[tuple[str, str], ...]]:  # type: ignore[override]
        """Return the argument that a copy is made from."""
        return (self.parts,)


def turns_and_answers(token_ids: Sequence[int], turns: Sequence[Turn]) -> Iterator[tuple[Turn | None, tuple[int, ...]]]:
    """Yield the turns within ``token_ids`` and the environment's answers between them, in order, with their ids.

    Yields:
        A turn, or ``None`` for an answer, and its ids; answers of no ids are left out.
    """
    end = 0
    for turn in turns:
        if turn.start > end:
            yield None, tuple(token_ids[end : turn.start])
        yield turn, tuple(token_ids[turn.start : turn.end])
        end = turn.end
    if end < len(token_ids):
        yield None, tuple(token_ids[end:])


def _indented(text: str) -> str:
    return _INDENT.join(text.splitlines(keepends=True))

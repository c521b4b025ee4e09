"""Dialogues with known replies, to try a way of decoding several turns before it is trusted with environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from heliostat.rollout.request import Reply
from heliostat.types import StopReason, Turn


@dataclass(slots=True)
class Scripted:
    """A dialogue that answers at once, with one reply after each turn; then the episode is over.

    Attributes:
        replies: token ids of each reply.
        max_turn_tokens: see ``Dialogue.max_turn_tokens``.
        has_ended: whether ``end`` was called.
    """

    replies: Iterator[tuple[int, ...]]
    max_turn_tokens: int
    has_ended: bool = False

    def reply(self, turn_ids: Sequence[int], room: int) -> Future[Reply]:
        """See ``Dialogue.reply``."""
        ids = next(self.replies, None)
        answered: Future[Reply] = Future()
        over = StopReason.ENVIRONMENT_DONE if ids is None else None
        answered.set_result(Reply(ids or (), over, Turn(0, 0, reward=float(over is not None))))
        return answered

    def end(self) -> None:
        """See ``Dialogue.end``."""
        self.has_ended = True


def script(token_ids: Sequence[int], num_replies: int, length: int) -> Iterator[tuple[int, ...]]:
    """Yield replies of ``length`` ids and more, cut from ``token_ids``."""
    for number in range(num_replies):
        first = number * length % len(token_ids)
        yield tuple([*token_ids, *token_ids][first : first + length + number % 2])

"""A trajectory as a conversation for people: the texts of its turns and of the environment's answers, in order.

Left out: pages (``report``) and terminals (``cli``), which show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from heliostat.tasks.transcripts import turns_and_answers
from heliostat.types import Completion

TextOf = Callable[[Sequence[int]], str]
"""Decodes token ids, without special tokens."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One part of a conversation.

    Attributes:
        role: the side that wrote it.
        tokens: its number of tokens, special ones included.
        reward: the environment's reward for a turn of the assistant; ``None``: it gave none.
    """

    role: Literal["assistant", "environment"]
    text: str
    tokens: int
    reward: float | None = None


def conversation(completion: Completion, text_of: TextOf, answer_of: TextOf) -> list[Utterance]:
    """Divide a trajectory into its turns and the answers between them.

    Args:
        text_of: decodes turns.
        answer_of: decodes the environment's answers.

    **Limits** Empty for a completion without turns. The numbers of tokens add up to the completion's.
    """
    return list(_utterances(completion, text_of, answer_of)) if completion.turns else []


def _utterances(completion: Completion, text_of: TextOf, answer_of: TextOf) -> Iterator[Utterance]:
    for turn, ids in turns_and_answers(completion.token_ids, completion.turns):
        if turn is None:
            yield Utterance("environment", answer_of(ids), len(ids))
        else:
            yield Utterance("assistant", text_of(ids), len(ids), turn.reward)

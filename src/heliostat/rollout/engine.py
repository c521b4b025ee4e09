"""The interface of a rollout engine, and the counts of its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from heliostat.cards import Card
from heliostat.models import LoadedModel
from heliostat.rollout.request import SampleRequest
from heliostat.types import Group


@dataclass(slots=True, repr=False)
class RolloutCounts(Card):
    """Exact counts of the forward passes that sampling ran; tests and the FLOP ledger rely on them.

    Attributes:
        prefills: prompts run (once per group).
        prompt_tokens, prompt_attended: their tokens, and the positions those attended to; a beginning that all
            prompts share counts once.
        decode_steps, decoded_rows: forward passes over live rows, and rows in them.
        decoded_attended: positions the decoded tokens attended to.
        unshared_prefills, unshared_tokens, unshared_attended: the prompts if every completion had run its own.
        replies, reply_tokens, reply_attended: chunks fed behind a cache (an environment's replies, each with the last
            token sampled before it), their tokens, and the positions those attended to.
        episodes, failed_episodes: episodes of environments, and those among them that could not be scored.
        refused_replays: prompts whose stored turns an environment answered otherwise than before.
    """

    prefills: int = 0
    prompt_tokens: int = 0
    prompt_attended: int = 0
    decode_steps: int = 0
    decoded_rows: int = 0
    decoded_attended: int = 0
    unshared_prefills: int = 0
    unshared_tokens: int = 0
    unshared_attended: int = 0
    replies: int = 0
    reply_tokens: int = 0
    reply_attended: int = 0
    episodes: int = 0
    failed_episodes: int = 0
    refused_replays: int = 0

    def __add__(self, other: RolloutCounts) -> RolloutCounts:
        names = (field.name for field in dataclasses.fields(self))
        return RolloutCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def add_prompts(self, lengths: Sequence[int], group_size: int, num_common: int = 0) -> None:
        """Count one prefill of prompts, each of which goes on to ``group_size`` completions.

        Args:
            lengths: whole, with the ``num_common`` tokens that had been prefilled before (``add_common``).
        """
        attended = sum(length * (length + 1) // 2 for length in lengths)
        self.prefills += len(lengths)
        self.prompt_tokens += sum(lengths) - num_common * len(lengths)
        self.prompt_attended += attended - num_common * (num_common + 1) // 2 * len(lengths)
        self.unshared_prefills += group_size * len(lengths)
        self.unshared_tokens += group_size * sum(lengths)
        self.unshared_attended += group_size * attended

    def add_replies(self, known: Sequence[int], lengths: Sequence[int]) -> None:
        """Count chunks of these lengths, each behind a cache of ``known`` tokens."""
        self.replies += len(lengths)
        self.reply_tokens += sum(lengths)
        self.reply_attended += sum(
            length * before + length * (length + 1) // 2 for before, length in zip(known, lengths, strict=True)
        )

    def add_common(self, length: int) -> None:
        """Count the one prefill of the beginning that all prompts share."""
        self.prompt_tokens += length
        self.prompt_attended += length * (length + 1) // 2


class Engine(Protocol):
    """An engine that continues prompts and reports its own log-probabilities."""

    @property
    def way(self) -> str:
        """The name of this way of decoding, as part of a sentence."""
        ...

    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample a group for every prompt and return the groups in prompt order.

        Raises:
            ValueError: a prompt fills the model's context.
            SamplingStopped: another thread called ``stop``.
        """
        ...

    def take_counts(self) -> RolloutCounts:
        """Return the counts since the last call, and start again from zero."""
        ...

    def clone_for(self, loaded: LoadedModel) -> Engine:
        """Return the same engine on a copy of its model, for another thread to use at the same time."""
        ...

    def stop(self) -> None:
        """End sampling for good: calls in other threads raise ``SamplingStopped`` soon."""
        ...

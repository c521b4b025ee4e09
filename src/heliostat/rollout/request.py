"""The request that every rollout engine takes, and the other side of a completion of several turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

from heliostat.rollout.sampling import SamplingSettings
from heliostat.types import Group, Prompt, StopReason, Turn


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one turn.

    Attributes:
        token_ids: tokens that follow the turn, up to where the next turn begins; empty if the episode is over.
        stop_reason: the reason why the episode is over; ``None``: it goes on.
        turn: the turn's record. Its span is the engine's to fill in.
    """

    token_ids: tuple[int, ...]
    stop_reason: StopReason | None
    turn: Turn


class Dialogue(Protocol):
    """The other side of one completion of several turns, such as an environment."""

    @property
    def max_turn_tokens(self) -> int:
        """Sampled tokens that one turn may have; a turn that uses them up is truncated."""
        ...

    def reply(self, turn_ids: Sequence[int], room: int) -> Future[Reply]:
        """Begin to answer a turn that ended by itself; never blocks.

        Args:
            turn_ids: the sampled ids of the turn.
            room: tokens that the completion may still have, the reply's included.
        """
        ...

    def end(self) -> None:
        """Release the other side; called once the completion has ended, for whatever reason."""
        ...


OnGroup = Callable[[int, Group], object]
"""Called with a group's index and the group, as soon as its last completion has ended."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request for one group of completions per prompt.

    Attributes:
        group_size: completions of every prompt.
        seed: decides every random number, together with each prompt's problem and the place in its group.
        policy_step: the step whose weights sample; recorded in the groups.
        on_group: called once per group, in any order and perhaps from other threads, while others are still decoded.
        dialogues: by prompt and member, the other side of each completion; ``None``: completions have one turn.
    """

    prompts: Sequence[Prompt]
    group_size: int
    settings: SamplingSettings
    _: KW_ONLY
    seed: int
    policy_step: int
    on_group: OnGroup | None = None
    dialogues: Sequence[Sequence[Dialogue]] | None = None

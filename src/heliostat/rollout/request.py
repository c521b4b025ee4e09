"""The request that every rollout engine takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from heliostat.rollout.sampling import SamplingSettings
from heliostat.types import Group, Prompt

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
    """

    prompts: Sequence[Prompt]
    group_size: int
    settings: SamplingSettings
    _: KW_ONLY
    seed: int
    policy_step: int
    on_group: OnGroup | None = None

"""The sampling request of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.rollout import SamplingSettings
from heliostat.traces import TraceSource
from heliostat.types import Prompt


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """The prompts, settings and seed to sample with for one step.

    Attributes:
        step: step that will train on the groups.
        policy_step: step of the weights to sample with.
        version: version of these weights (``Updater.version``).
        sources: by task, the description of the sampling policy for the trace bank.
    """

    step: int
    prompts: Sequence[Prompt]
    settings: SamplingSettings
    seed: int
    policy_step: int
    version: int
    sources: Mapping[str, TraceSource]

    @property
    def is_ahead(self) -> bool:
        """Whether the weights are expected to move between sampling and training."""
        return self.policy_step < self.step - 1

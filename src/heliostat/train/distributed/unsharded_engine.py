"""Sampling with weights that are cut over ranks: whole while it samples, cut again when it is done.

Left out: sampling with cut weights, where ranks would have to decode in step; for models that do not fit one device
there is the vLLM engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from heliostat.models import LoadedModel
from heliostat.rollout import Announce, Engine, RolloutCounts, SamplingSettings
from heliostat.train.distributed.fsdp import gathered
from heliostat.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class GatheredEngine:
    """An engine on a sharded model; all ranks sample together, each its own prompts (perhaps none)."""

    engine: Engine
    model: nn.Module

    @property
    def way(self) -> str:
        """See ``Engine.way``."""
        return self.engine.way

    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        settings: SamplingSettings,
        *,
        seed: int,
        policy_step: int,
        announce: Announce | None = None,
    ) -> list[Group]:
        """See ``Engine.sample``."""
        with gathered(self.model):
            return self.engine.sample(
                prompts, group_size, settings, seed=seed, policy_step=policy_step, announce=announce
            )

    def take_counts(self) -> RolloutCounts:
        """What was computed since the last call."""
        return self.engine.take_counts()

    def beside(self, loaded: LoadedModel) -> Engine:
        """See ``Engine.beside``; a twin holds whole weights."""
        return self.engine.beside(loaded)

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self.engine.stop()

"""Sampling from sharded weights, which are gathered before it and sharded again after it.

Left out: sampling while weights stay sharded, where ranks would have to decode in lockstep. Models that do not fit one
device need the vLLM engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from heliostat.models import LoadedModel
from heliostat.rollout import Engine, RolloutCounts, SampleRequest
from heliostat.train.distributed.fsdp import unsharded
from heliostat.types import Group


@dataclass(frozen=True, slots=True)
class UnshardedEngine:
    """An engine on a sharded model; all ranks sample at the same time, each its own prompts, which may be none."""

    engine: Engine
    model: nn.Module

    @property
    def way(self) -> str:
        """See ``Engine.way``."""
        return self.engine.way

    def sample(self, request: SampleRequest) -> list[Group]:
        """See ``Engine.sample``."""
        with unsharded(self.model):
            return self.engine.sample(request)

    def take_counts(self) -> RolloutCounts:
        """See ``Engine.take_counts``."""
        return self.engine.take_counts()

    def clone_for(self, loaded: LoadedModel) -> Engine:
        """See ``Engine.clone_for``; the copy of the model holds full weights."""
        return self.engine.clone_for(loaded)

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self.engine.stop()

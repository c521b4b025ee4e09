"""Synchronisation of ranks within an update: equally many passes on each, and one gradient.

Left out: which rows are whose (``Runtime.split``), and the transport (``train.distributed.ranks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy


@dataclass(frozen=True, slots=True)
class RankSync:
    """One update's dealings with other ranks.

    Attributes:
        parameters: whose gradients are averaged.
        filler: the shortest row of the update; ``None`` where nothing is to be done at all.
        num_dummy_passes: passes over it, without weight, that this rank makes beside its own.

    Limits:
        One rank: a factor of 1, and nothing else.
    """

    runtime: Runtime
    parameters: Sequence[Tensor]
    filler: Row | None
    num_dummy_passes: int

    @classmethod
    def for_update(
        cls, runtime: Runtime, parameters: Sequence[Tensor], rows: Sequence[Row], num_parts: int
    ) -> RankSync:
        """For an update over ``rows`` of all ranks, of which this one makes ``num_parts`` micro-batches."""
        filler = min(rows, key=lambda row: row.context_length + row.num_tokens, default=None)
        return cls(runtime, parameters, filler, runtime.num_dummy_passes(num_parts))

    @property
    def scale(self) -> int:
        """What a loss is multiplied by, since gradients are averaged over ranks and the loss is a sum over them."""
        return self.runtime.world_size

    def run_dummy_passes(self, policy: Policy) -> None:
        """Make the passes that other ranks make and this one has no rows for."""
        for _ in range(self.num_dummy_passes):
            assert self.filler is not None
            logp = policy.log_probs([self.filler])
            if torch.is_grad_enabled():
                (0.0 * logp.sum()).backward()  # type: ignore[no-untyped-call]

    def synchronise(self) -> None:
        """Give every rank the gradient of all."""
        self.runtime.average(self.parameters)

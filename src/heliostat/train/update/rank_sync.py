"""Synchronisation of ranks within an update: equally many passes on each, and one gradient.

Left out: the rows of each rank (``Runtime.shard_balanced``), and the transport (``train.distributed.ranks``).
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
    """Synchronization of one update with other ranks.

    Attributes:
        parameters: the parameters whose gradients are averaged.
        dummy: the shortest row of the update; ``None`` for an update without rows.
        num_dummy_passes: zero-weight passes over ``dummy`` that this rank runs besides its own.

    Limits:
        One rank: a factor of 1, and no other effect.
    """

    runtime: Runtime
    parameters: Sequence[Tensor]
    dummy: Row | None
    num_dummy_passes: int

    @classmethod
    def for_update(
        cls, runtime: Runtime, parameters: Sequence[Tensor], rows: Sequence[Row], num_parts: int
    ) -> RankSync:
        """Prepare an update over ``rows`` of all ranks, with ``num_parts`` micro-batches on this rank."""
        dummy = min(rows, key=lambda row: row.context_length + row.num_tokens, default=None)
        return cls(runtime, parameters, dummy, runtime.num_dummy_passes(num_parts))

    @property
    def scale(self) -> int:
        """The factor of a loss: the loss is a sum over ranks, and gradients are averaged over them."""
        return self.runtime.world_size

    def run_dummy_passes(self, policy: Policy) -> None:
        """Run the passes of other ranks for which this rank has no rows."""
        for _ in range(self.num_dummy_passes):
            assert self.dummy is not None
            logp = policy.log_probs([self.dummy])
            if torch.is_grad_enabled():
                (0.0 * logp.sum()).backward()  # type: ignore[no-untyped-call]

    def synchronise(self) -> None:
        """Average the gradient over all ranks."""
        self.runtime.average(self.parameters)

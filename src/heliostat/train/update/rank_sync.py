"""Synchronisation of ranks in one update: equally many passes on each rank, and one averaged gradient.

Left out: the division of rows over ranks (``Runtime.shard_balanced``), and the transport
(``train.distributed.ranks``).
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
    """The synchronisation of one update with other ranks.

    Attributes:
        parameters: parameters whose gradients are averaged.
        dummy: the shortest row of the update; ``None`` where the update has no rows.
        num_dummy_passes: passes over ``dummy``, with weight 0, that this rank runs in addition to its own.

    Limits:
        One rank: ``scale`` is 1, there are no dummy passes, and gradients stay as they are.
    """

    runtime: Runtime
    parameters: Sequence[Tensor]
    dummy: Row | None
    num_dummy_passes: int

    @classmethod
    def for_update(
        cls, runtime: Runtime, parameters: Sequence[Tensor], rows: Sequence[Row], num_parts: int
    ) -> RankSync:
        """Build the synchronisation of one update.

        Args:
            rows: of all ranks.
            num_parts: number of this rank's micro-batches.
        """
        dummy = min(rows, key=lambda row: row.context_length + row.num_tokens, default=None)
        return cls(runtime, parameters, dummy, runtime.num_dummy_passes(num_parts))

    @property
    def scale(self) -> int:
        """The factor on each loss: gradients are averaged over ranks, while the loss is a sum over ranks."""
        return self.runtime.world_size

    def run_dummy_passes(self, policy: Policy) -> None:
        """Run passes with weight 0, so that this rank runs as many passes as the others."""
        for _ in range(self.num_dummy_passes):
            assert self.dummy is not None
            logp = policy.log_probs([self.dummy])
            if torch.is_grad_enabled():
                (0.0 * logp.sum()).backward()  # type: ignore[no-untyped-call]

    def synchronise(self) -> None:
        """Average the gradients over ranks."""
        self.runtime.average(self.parameters)

"""Where a run runs: device, threads, determinism, and sums over ranks.

Nothing else in the project asks which rank it is. With one process every reduction is the identity; with several
(``torchrun``) the same code reduces over them.

Left out: sharding and distributed checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from heliostat.config import RunSection
from heliostat.types import Mean


@dataclass(frozen=True, slots=True)
class Runtime:
    """One process among its peers."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add each value up over ranks (float64)."""
        if self.world_size == 1:
            return dict(values)
        stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.tolist(), strict=True))

    def merge(self, means: Mapping[str, Mean]) -> dict[str, Mean]:
        """Merge means over ranks, weighting by what each counted."""
        totals = self.sum({key: mean.total for key, mean in means.items()})
        counts = self.sum({key: mean.count for key, mean in means.items()})
        return {key: Mean(totals[key], counts[key]) for key in means}


def start_runtime(section: RunSection) -> Runtime:
    """Set threads, determinism and seeds for this process.

    Randomness in training never comes from a global generator: every draw has its own seed derived from the run's, so
    that a resumed run repeats it. The global seed only fixes what libraries draw on their own.
    """
    threads = section.num_threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(section.seed)
    if section.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return Runtime(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

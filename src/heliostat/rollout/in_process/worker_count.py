"""The number of threads to decode a batch with, each with rows of its own.

torch's threads inside a product wait for each other, and where another program has one's core, for that program: a pass
of few rows then takes two to four times as long as on one thread, where on an idle machine it takes 0.6 to 0.9 of that
time (``benchmarks/workers/rollout.py``). Threads with rows of their own wait for nothing but Python, which runs one at
a time, so each needs enough to compute between Python's turns.

Left out: how rows are shared out (``engine``).
"""

from __future__ import annotations

import torch

from heliostat.models import LoadedModel, forward_flops
from heliostat.models.concurrency import runs_in_threads

MIN_FLOPS = {torch.bfloat16: 12e8}
"""Operations of a worker's pass, below which another worker gains nothing, by the dtype of weights."""

USUAL_MIN_FLOPS = 6e8

MAX_WORKERS = 4
"""Because of Python, and since more have not been measured."""


def suitable_workers(loaded: LoadedModel, num_rows: int) -> int:
    """Return how many threads to decode with on a CPU: one per thread of torch, where each has enough to compute.

    Args:
        num_rows: rows that are decoded at once.

    **Limits**: 1 for a model that threads cannot share.
    """
    if not runs_in_threads(loaded.model):
        return 1
    flops = num_rows * forward_flops(loaded, 1, 0)
    enough = int(flops // MIN_FLOPS.get(loaded.model.dtype, USUAL_MIN_FLOPS))
    return max(1, min(torch.get_num_threads(), MAX_WORKERS, enough))

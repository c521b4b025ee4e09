"""Sharded checkpoints, with one rank killed while they are written: a new step, and one that is written again.

A few events of each rank here; ``make torture`` kills at every one.
"""

import pytest

from tests.support import sharded


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(2, 4), (2, 2)], ids=["a new step", "the same step again"])
def test_a_rank_killed_while_saving(tmp_path, steps):
    counts = sharded.num_events(tmp_path, steps)
    assert counts[0] > 20
    assert counts[1] >= 1
    for rank, num in enumerate(counts):
        for event in {1, num // 2, num - 3 * (rank == 0)} - {0}:
            assert sharded.survives(tmp_path, steps[1], rank, event), (rank, event)

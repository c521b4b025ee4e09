"""Signals of two processes, merged, are those of one process with the whole batch."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.signal import merge
from heliostat.train.distributed.ranks import Runtime
from heliostat.types import Batch
from tests.conformance.test_distributed_optimizers import free_port
from tests.support.batches import group, random_batch
from tests.unit.monitors.test_signal import MONITOR
from tests.unit.monitors.test_turns import SIGNAL, trajectory

LENGTHS = torch.tensor([3, 5, 2, 4, 1, 7])


def tokens():
    generator = torch.Generator().manual_seed(0)
    num = int(LENGTHS.sum())
    logp_gen = -torch.rand(num, generator=generator)
    return logp_gen + 0.1 * torch.randn(num, generator=generator), logp_gen


def mismatch(first, last):
    """Moments of sequences ``first`` to ``last``."""
    start, end = int(LENGTHS[:first].sum()), int(LENGTHS[:last].sum())
    sequence = torch.repeat_interleave(torch.arange(last - first), LENGTHS[first:last])
    logp_train, logp_gen = tokens()
    return Mismatch().measure(logp_train[start:end], logp_gen[start:end], sequence, last - first)


def numbers(runtime, groups, sequences):
    moments = runtime.merge(MONITOR.measure(Batch(groups)))
    turns = runtime.merge(SIGNAL.measure(Batch(trajectory_groups()[slice(*sequences)])))
    return MONITOR.finish(moments) | Mismatch().finish(runtime.merge(mismatch(*sequences))) | SIGNAL.finish(turns)


def trajectory_groups():
    """Six groups, of which the first rank has two."""
    lengths = (1, 3, 2, 5, 1, 4)
    return tuple(group([trajectory(*[[5, 6]] * num, num_calls=[1] * num)]) for num in lengths)


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    runtime = Runtime(torch.device("cpu"), rank, 2)
    groups = random_batch(3).groups
    mine = numbers(runtime, groups[:2] if rank == 0 else groups[2:], (0, 2) if rank == 0 else (2, 6))
    Path(folder, f"{rank}.json").write_text(json.dumps(mine))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = numbers(Runtime(torch.device("cpu")), random_batch(3).groups, (0, 6))
    assert ranks[0] == ranks[1]
    assert ranks[0] == pytest.approx(alone, rel=1e-9, abs=1e-9)
    assert {"mismatch/ess", "policy/entropy_drift", "answers/effective"} <= alone.keys()


def test_micro_batches_are_one():
    pieces = merge([mismatch(0, 1), mismatch(1, 4), mismatch(4, 6)])
    assert Mismatch().finish(pieces) == pytest.approx(Mismatch().finish(mismatch(0, 6)), rel=1e-9)

"""Data parallelism on two processes gives the weights of one process with the whole batch, for every optimizer."""

import os
import socket
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from optimizer_rows import ROWS, Classifier, batch, train_step, weights
from torch.nn.parallel import DistributedDataParallel

NUM_STEPS = 3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_process(row):
    model = Classifier()
    optimizer = row.make(model)
    num_scores = getattr(optimizer, "num_scores", 0)
    if optimizer.extra_pass == "scores":  # the same samples that the two ranks take, in total
        optimizer.num_scores = 2 * num_scores
    scored = [*range(num_scores), *range(6, 6 + num_scores)]
    for step in range(NUM_STEPS):
        train_step(optimizer, model, *batch(seed=step), scored=scored)
    return weights(model)


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for row in ROWS:
        model = Classifier()
        optimizer = row.make(model)  # no group is named: it is the default group
        parallel = DistributedDataParallel(model)
        for step in range(NUM_STEPS):
            inputs, labels = batch(seed=step)
            own = slice(6 * rank, 6 * rank + 6)
            train_step(optimizer, parallel, inputs[own], labels[own])
        results[row.name] = weights(model)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    wrong = {}
    for row in ROWS:
        assert torch.equal(ranks[0][row.name], ranks[1][row.name]), row.name
        wrong[row.name] = float((ranks[0][row.name] - one_process(row)).abs().max())
    assert {name: error for name, error in wrong.items() if error > 1e-8} == {}

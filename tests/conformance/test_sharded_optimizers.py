"""Weights sharded over two processes (FSDP2) end where one process with the whole batch ends."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from optimizer_rows import ROWS, Classifier, batch, train_step, weights

from tests.conformance.test_distributed_optimizers import NUM_STEPS, free_port

SHARDED = [
    *("rank1", "rank1-four", "rank1-averaged", "rank1-layer", "eva", "ring", "ring-exact", "ring-empirical"),
    *("reng-difference", "rkalman", "kronecker-sum", "kronecker-sum-blocks"),
    *("kronecker-product", "kronecker-product-blocks"),
]
BY_LAYERS = [name for name in SHARDED if name.startswith(("eva", "ring"))]
BY_NAME = {row.name: row for row in ROWS}


def train(row, model, share=slice(None), **settings):
    optimizer = row.make(model, **settings)
    for step in range(NUM_STEPS):
        inputs, labels = batch(seed=step)
        # Scores are of the first samples on every process: their gradients are averaged over equal ones.
        optimizer.zero_grad()
        if optimizer.extra_pass == "reevaluation":
            train_step(optimizer, model, inputs[share], labels[share])
            continue
        for k in range(optimizer.num_scores if optimizer.extra_pass == "scores" else 0):
            with optimizer.score():
                torch.nn.functional.cross_entropy(model(inputs[k : k + 1]), labels[k : k + 1]).backward()
        torch.nn.functional.cross_entropy(model(inputs[share]), labels[share]).backward()
        if optimizer.extra_pass == "statistics" and optimizer.wants_statistics and not optimizer.empirical:
            with optimizer.statistics():
                torch.nn.functional.cross_entropy(model(inputs[share]), labels[share], reduction="sum").backward()
        optimizer.step()


def worker(rank, port, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for name in SHARDED:
        model = Classifier()
        fully_shard(model, mesh=mesh)
        row = BY_NAME[name]
        train(row, model, slice(6 * rank, 6 * rank + 6))
        results[name] = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
    for name in BY_LAYERS:
        model = Classifier()
        fully_shard(model, mesh=mesh)
        with pytest.raises(ValueError, match="process_group"):
            train(BY_NAME[name], model, process_group="alone")
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_sharded_weights_end_where_whole_ones_do(tmp_path):
    mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    wrong = {}
    for name in SHARDED:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        model = Classifier()
        train(BY_NAME[name], model)
        wrong[name] = float((ranks[0][name] - weights(model)).abs().max())
    assert {name: error for name, error in wrong.items() if error > 1e-8} == {}

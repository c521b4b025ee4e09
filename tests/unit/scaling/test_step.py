"""Traffic and seconds: identities, limits, and what two real ranks move and hold."""

import dataclasses
import importlib.util
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from heliostat.config import ConfigError, OptimizerSection, build_recipe
from heliostat.optim import build_optimizer
from heliostat.rollout import RolloutCounts
from heliostat.scaling import (
    H100,
    MODELS,
    GpuLayout,
    Job,
    estimate,
    job_of,
    sampling_flops,
    shape_of,
    step_seconds,
    step_traffic,
    training_flops,
    training_memory,
)
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.fsdp import shard, unsharded
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.updater import make_batch
from tests.support.nano import make_nano
from tests.unit.train.distributed.test_ranks import free_port
from tests.unit.train.update.test_updater import graded, updater

ROOT = Path(__file__).parents[3]
JOB = Job(num_prompts=64, group_size=8, prompt_tokens=200, mean_tokens=500, longest_tokens=2000, num_updates=2)
SEVEN = MODELS["qwen2.5-7b"]


def test_one_rank_sends_nothing():
    for sharded in (False, True):
        traffic = step_traffic(SEVEN, JOB, GpuLayout(1, sharded))
        assert traffic.wire(1) == 0
        assert step_seconds(SEVEN, JOB, GpuLayout(1, sharded), H100).traffic == 0


def test_replicated_ranks_send_their_gradients_twice_whatever_the_micro_batches():
    few, many = (dataclasses.replace(JOB, microbatch_tokens=tokens) for tokens in (10**9, 100))
    for job in (few, many):
        assert step_traffic(SEVEN, job, GpuLayout(8)).all_reduce == JOB.num_updates * 4 * SEVEN.num_parameters
    exchange = step_traffic(SEVEN, few, GpuLayout(8)).object_all_gather
    expected = 2 * 4 * SEVEN.num_parameters * JOB.num_updates + exchange
    assert step_traffic(SEVEN, few, GpuLayout(10**9)).wire(10**9) == pytest.approx(expected)


def test_sharding_costs_half_as_much_again_for_one_micro_batch():
    """ZeRO stage 3 against plain data parallelism: three times the weights instead of two (arXiv 1910.02054)."""
    job = dataclasses.replace(JOB, num_updates=1, microbatch_tokens=10**9, diagnosed=False)
    cut = step_traffic(SEVEN, job, GpuLayout(8, True, num_samplers=8), "float32")
    whole = step_traffic(SEVEN, job, GpuLayout(8, False, num_samplers=8), "float32")
    assert cut.training_all_gather + cut.reduce_scatter == 1.5 * 2 * whole.all_reduce


def test_more_gpus_are_never_slower_and_tend_to_the_longest_completion():
    times = [step_seconds(SEVEN, JOB, GpuLayout(num, True, num), H100) for num in (4, 8, 16, 64, 512)]
    for fewer, more in pairwise(times):
        assert more.sampling <= fewer.sampling
        assert more.compute < fewer.compute
    alone = dataclasses.replace(JOB, num_prompts=1, group_size=1)
    limit = step_seconds(SEVEN, alone, GpuLayout(512, True, 512), H100).decode
    assert times[-1].decode == pytest.approx(limit, rel=0.05)


def test_asynchronous_is_between_half_of_synchronous_and_all_of_it_where_nothing_waits():
    job = dataclasses.replace(JOB, longest_tokens=500)
    seconds = step_seconds(SEVEN, job, GpuLayout(8, True, 8), H100)
    assert seconds.steady == pytest.approx(seconds.decode)
    assert seconds.synchronous / 2 <= seconds.asynchronous <= seconds.synchronous


def test_operations_are_the_ledgers():
    """A batch of equal prompts and completions, whose sums the ledger counts token by token."""
    loaded = make_nano()
    shape = shape_of(loaded.model.config.to_dict(), "nano")
    prompt, length, groups, size = 20, 30, 3, 4

    class Row:
        def __init__(self, group):
            self.group, self.context_length, self.num_tokens = group, prompt, length
            self.length = length

    counts, ledger = UpdateCounts(), Ledger()
    counts.add([Row(group) for group in range(groups) for _ in range(size)], shared_prompt=True)
    ledger.charge_update("update", loaded, counts)
    job = Job(groups, size, prompt, length, length, diagnosed=False)
    assert training_flops(shape, job) == pytest.approx(ledger.flops["update"], rel=0.01)
    assert training_flops(shape, dataclasses.replace(job, gradient_checkpointing=True)) == pytest.approx(
        training_flops(shape, job) * 4 / 3
    )
    rows = groups * size
    sampled = RolloutCounts(prefills=groups, prompt_tokens=groups * prompt, prompt_attended=groups * prompt**2 // 2)
    sampled.decoded_rows = rows * length
    sampled.decoded_attended = rows * (length * prompt + length**2 // 2)
    ledger.charge_rollout("rollout", loaded, sampled)
    assert sampling_flops(shape, job) == pytest.approx(ledger.flops["rollout"], rel=1e-9)


def test_a_job_is_read_from_a_recipe():
    overrides = ["--rollout.max_new_tokens=100", "--train.updates_per_step=4", "--train.gradient_checkpointing=true"]
    job = job_of(build_recipe({}, overrides), prompt_tokens=10)
    assert (job.mean_tokens, job.longest_tokens, job.scored_forwards, job.gradient_checkpointing) == (
        50,
        100,
        0.75,
        True,
    )
    with pytest.raises(ConfigError, match="200 tokens on average cannot be at most 100 long"):
        job_of(build_recipe({}, overrides), prompt_tokens=10, mean_tokens=200)
    with pytest.raises(ConfigError, match="6 GPUs cannot sample in teams of 4"):
        GpuLayout(6, sampler_ways=4)


@pytest.mark.parametrize(
    ("model", "layout", "gradient_checkpointing", "says"),
    [
        ("qwen2.5-0.5b", GpuLayout(1), False, ()),
        ("qwen2.5-7b", GpuLayout(1), False, ("optimizer take 137 GB of 72 GB; way out: more GPUs, or",)),
        ("qwen2.5-7b", GpuLayout(8), False, ("distributed.placement = 'sharded', or",)),
        ("qwen2.5-7b", GpuLayout(8, True), False, ()),
        ("qwen2.5-32b", GpuLayout(16, True), True, ("leave no memory for a completion; way out: a vLLM server",)),
        ("llama-3.1-405b", GpuLayout(1024, True, 64, 4), True, ("way out: more GPUs for one sampler",)),
        ("qwen2.5-32b", GpuLayout(16, True, 16, 4), False, ("way out: train.gradient_checkpointing = true",)),
        ("qwen2.5-32b", GpuLayout(16, True, 16, 4), True, ()),
        ("kimi-k2", GpuLayout(512, True, 512, 32), True, ("layers gathered for a pass take 68.2 GB",)),
        ("kimi-k2", GpuLayout(512, True, 512, 32, expert_ways=64), True, ()),
    ],
)
def test_what_does_not_fit_is_said_with_a_way_out(model, layout, gradient_checkpointing, says):
    job = Job(64, 16, 512, 2048, 8192, gradient_checkpointing=gradient_checkpointing)
    obstacles = estimate(MODELS[model], job, layout, H100).obstacles
    assert len(obstacles) == len(says)
    for obstacle, expected in zip(obstacles, says, strict=True):
        assert expected in obstacle


# -- real ranks -------------------------------------------------------------------------------------------------------


def counting():
    path = ROOT / "benchmarks" / "scaling" / "counting.py"
    spec = importlib.util.spec_from_file_location("counting", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["counting"] = module
    spec.loader.exec_module(module)
    return module


def counted(runtime):
    """Bytes of one rank's weights gathered for sampling, of two updates, and of what it then holds."""
    loaded = make_nano()
    groups = graded(loaded, num_prompts=4)
    count = counting()
    exact_layouts(loaded)  # before weights are cut, as a run does
    if runtime.sharded:
        shard(loaded.model, runtime.device, None)
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=1e-3), loaded.model)
    one = updater(loaded, lr=1e-3, optimizer=optimizer, tau=0.5)
    one.runtime = runtime
    with count.Collectives() as sampling, unsharded(loaded.model):
        pass
    with count.Collectives() as training:
        one.run(make_batch(one.objective, groups), num_updates=2, first_update=0, seed=3)
    return {"sampling": dict(sampling.bytes), "training": dict(training.bytes)} | count.stored(loaded.model, optimizer)


def worker(rank, port, path):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {sharded: counted(Runtime(torch.device("cpu"), rank, 2, sharded)) for sharded in (False, True)}
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_move_and_hold_what_the_model_says(tmp_path):
    mp.spawn(worker, (free_port(), str(tmp_path / "found.pt")), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    loaded = make_nano()
    shape = shape_of(loaded.model.config.to_dict(), "nano")
    job = Job(4, 4, 8, 4, 8, num_updates=2, microbatch_tokens=10_000, diagnosed=False)
    for sharded, seen in found.items():
        layout = GpuLayout(2, sharded)
        held = training_memory(shape, job, layout, "float32")
        assert (seen["weights"], seen["gradients"], seen["optimizer"]) == (held.weights, held.gradients, held.optimizer)
        traffic = step_traffic(shape, job, layout, "float32")
        assert seen["sampling"].get("all-gather", 0) == traffic.sampling_all_gather
        assert seen["training"].get("reduce-scatter", 0) == traffic.reduce_scatter
        numbers = 4 * job.num_updates * sharded  # the norm of the head's gradient, which no rank has whole
        assert seen["training"].get("all-reduce", 0) == traffic.all_reduce + numbers
        extra = seen["training"].get("all-gather", 0) - traffic.training_all_gather
        assert 0 <= extra <= 4 * shape.largest_layer  # torch may prefetch one in vain, after passes without gradient
    alone = counted(Runtime(torch.device("cpu")))
    held = training_memory(shape, job, GpuLayout(1), "float32")
    assert alone["sampling"] == alone["training"] == {}
    assert (alone["weights"], alone["gradients"], alone["optimizer"]) == (held.weights, held.gradients, held.optimizer)

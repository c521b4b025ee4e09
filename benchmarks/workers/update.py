"""Time an update's gradient by one thread, by torch's threads in every operation, and by workers with a part each.

    python benchmarks/workers/update.py                     # all models; on an idle machine
    python benchmarks/workers/update.py --busy 1            # beside one process that never rests
    python benchmarks/workers/update.py --models 5M --cores 2

The gradient is that of ``sum log pi`` over completions of tiny models. The three ways take turns within a round, and
ratios are those of a round, of which medians, least and greatest are printed. All three give one gradient per round;
that of the workers is compared with that of one thread, bit for bit.

*Fair share*: with B busy processes beside W threads on C cores, each thread runs at C / (B + W) of a core, so that the
least time is T / W / that, for T seconds of one thread. *Simulated* speeds divide the measured CPU seconds of the parts
over more workers than this machine has cores, each taking the next part when it is free.

**Prediction, before running** (from a prototype of 16 rows of 48 tokens a part): 1.8 to 1.95 times one thread on two
idle cores where torch's threads give 1.5 to 1.9; beside a busy process within 1.25 times the fair share, where torch's
threads are slower than one.

Left out: sampling, and the optimizer's step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, encode_problem, load_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.logprobs.packing import Row, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.gradient_workers import GradientWorkers
from heliostat.types import Problem, TrainingGroup

MODELS: dict[str, tuple[dict[str, int], tuple[int, int, int]]] = {
    "1.35M": ({}, (32, 8, 16)),
    "5M": (
        {"hidden_size": 256, "intermediate_size": 768, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4},
        (8, 8, 24),
    ),
    "25M": (
        {"hidden_size": 512, "intermediate_size": 1376, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8},
        (8, 8, 24),
    ),
}
"""Shape, and the workload: prompts, completions of each, mean tokens of a completion."""


def rows_for(loaded: LoadedModel, workload: tuple[int, int, int]) -> list[Row]:
    """Sample completions of ragged lengths, 64 tokens at most."""
    num_prompts, group_size, mean = workload
    prompts = [encode_problem(loaded, Problem(f"p{n}", "sums", f"{n} + 25 - 3 + 41 =")) for n in range(num_prompts)]
    ends = frozenset(range(0, loaded.model.config.vocab_size, mean))
    engine = TorchEngine(dataclasses.replace(loaded, eos_ids=ends), DecodeLimits(64))
    groups = engine.sample(SampleRequest(prompts, group_size, SamplingSettings(), seed=0, policy_step=0))
    return rows_of([TrainingGroup(group, torch.zeros(len(group.completions))) for group in groups])


def differentiate(policy: Policy, part: Sequence[Row]) -> float:
    """Add the part's gradient; return the CPU seconds of this thread."""
    began = time.thread_time()
    policy.log_probs(part).sum().backward()  # type: ignore[no-untyped-call]
    return time.thread_time() - began


def timed(
    workers: GradientWorkers, policy: Policy, parts: Sequence[Sequence[Row]], num_threads: int
) -> tuple[float, list[float]]:
    """Return wall seconds, and the CPU seconds of each part in its thread."""
    torch.set_num_threads(num_threads)
    policy.loaded.model.zero_grad()
    began = time.perf_counter()
    seconds = workers.run(policy, parts, differentiate)
    return time.perf_counter() - began, seconds


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Run processes that never rest inside the block."""
    processes = [multiprocessing.Process(target=spin, daemon=True) for _ in range(num_processes)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def spin() -> None:
    """Compute without end."""
    while True:
        sum(range(10_000))


def simulated(seconds: Sequence[float], num_workers: int) -> float:
    """Return how many times faster than one worker ``num_workers`` would be."""
    free_at = [0.0] * num_workers
    for part in seconds:
        first = free_at.index(min(free_at))
        free_at[first] += part
    return sum(seconds) / max(free_at)


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Time all rounds of one model."""
    shape, workload = MODELS[name]
    torch.set_num_threads(1)
    loaded = load_model(ModelSection(path="tiny", dtype="float32", settings=shape), 0)
    loaded.model.eval()
    policy = Policy(loaded, 1.0, shared_prompt=True)
    one, many = GradientWorkers(1), GradientWorkers(args.cores)
    parts = one.split(policy, rows_for(loaded, workload), 8192)
    ways: dict[str, Callable[[], tuple[float, list[float]]]] = {
        "one thread": lambda: timed(one, policy, parts, 1),
        "torch's threads": lambda: timed(one, policy, parts, args.cores),
        "workers": lambda: timed(many, policy, parts, args.cores),
    }
    rounds: list[dict[str, float]] = []
    gradients: dict[str, list[torch.Tensor]] = {}
    alone: list[float] = []
    with busy(args.busy):
        for number in range(args.rounds + 1):
            walls = {}
            for way, run in ways.items():
                walls[way], seconds = run()
                gradients[way] = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]
                alone = seconds if way == "one thread" else alone
            if number:  # the first warms up
                rounds.append(walls)
    if not all(torch.equal(a, b) for a, b in zip(gradients["one thread"], gradients["workers"], strict=True)):
        raise SystemExit(f"{name}: the workers' gradient is not that of one thread")
    share = min(1.0, args.cores / (args.busy + args.cores))
    fair = [sum(alone) / args.cores / share / walls["workers"] for walls in rounds]
    return {
        "model": name,
        "parts": len(parts),
        "busy": args.busy,
        "wall_s": {way: round(statistics.median(walls[way] for walls in rounds), 3) for way in ways},
        "times one thread": {way: spread([walls["one thread"] / walls[way] for walls in rounds]) for way in ways},
        "workers x fair share": spread([1 / each for each in fair]),
        "simulated": {count: round(simulated(alone, count), 2) for count in (2, 4, 8, 16)},
    }


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest."""
    return [round(each, 2) for each in (statistics.median(values), min(values), max(values))]


def main() -> None:
    """Measure each model, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for name in args.models:
        print(json.dumps(measure(name, args)), flush=True)


if __name__ == "__main__":
    main()

"""The time of our step in the race by kind of operation, and the most that the race's ratio could be without the rest.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/step_profile.py --models 5M 25M smollm2-135m
    python benchmarks/race_trl/step_profile.py --table

A step of the race's recipe, one thread: its CPU seconds, median of three, and the time of two kinds of operations in a
further one under torch's profiler. *Products* are matrix products of weights, *attention* its fused and batched ones;
*everything else* is the rest: norms, activations, copies, sums, softmax, the optimizer, Python, and the profiler.
*Of ceiling* is the rate of the products against one of 1,024 x 1,024 in the same dtype. The learning rate is small, so
that the policy stays one that has something to learn.

The last columns are the factors by which the race's ratio would grow if nothing but products and attention, and if
nothing but products cost time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from entries import Entry
from products import best_us
from race import ENTRIES, HERE, WARM_UP_STEPS, job_of
from sides import heliostat_recipe
from torch.profiler import ProfilerActivity, profile

from heliostat.research import Experiment, open_experiment

RESULTS = HERE / "results" / "step_profile.jsonl"
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::mkldnn_linear", "aten::linear", "mkldnn::", "aten::_mm"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::_flash_attention"),
}
"""Kind -> beginnings of the names of its operations."""
OTHER = "other operations"
NUM_STEPS, CEILING_SIZE = 3, 1024

Point = dict[str, Any]


def kind_of(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if name.startswith(names)), OTHER)


def step(experiment: Experiment, index: int) -> None:
    """Sample a batch and learn from it."""
    problems = experiment.problems(index, experiment.recipe.rollout.prompts_per_step)
    experiment.step(experiment.sample(problems, seed=index), seed=index)


def measure(entry: Entry) -> Point:
    """Profile a step of a cell of the race, as our side of it makes one."""
    with tempfile.TemporaryDirectory() as folder:
        _, job = job_of("heliostat", dataclasses.replace(entry, lr=1e-6), Path(folder), NUM_STEPS, 0, 1)
        with open_experiment(heliostat_recipe(job)) as experiment:
            taken = []
            for index in range(WARM_UP_STEPS + NUM_STEPS):
                began = time.process_time()
                step(experiment, index)
                taken.append(time.process_time() - began)
            before = dict(experiment.ledger.flops)
            with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
                step(experiment, WARM_UP_STEPS + NUM_STEPS - 1)  # the last one's problems and streams again
            spent = {phase: flops - before[phase] for phase, flops in experiment.ledger.flops.items()}
            dtype = experiment.loaded.model.dtype
    seconds: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        names[event.key] += event.self_cpu_time_total / 1e6
    square = torch.ones(CEILING_SIZE, CEILING_SIZE, dtype=dtype)
    return {
        "model": entry.model,
        "workload": entry.workload,
        "cpu_s": statistics.median(taken[WARM_UP_STEPS:]),
        "seconds": dict(seconds),
        "largest": dict(sorted(names.items(), key=lambda pair: -pair[1])[:12]),
        "flops": sum(spent.values()),
        "dtype": str(dtype).removeprefix("torch."),
        "ceiling": 2e6 * CEILING_SIZE**3 / best_us(partial(torch.mm, square, square), 1),
    }


def table(points: list[Point]) -> str:
    """Write a line for each cell."""
    lines = [
        "| model | prompts | CPU s/step | products | of ceiling | attention | everything else "
        "| x products and attention | x products |",
        f"|---|---|{'--:|' * 7}",
    ]
    for point in points:
        products, attention = point["seconds"]["products"], point["seconds"]["attention"]
        whole = max(point["cpu_s"], sum(point["seconds"].values()))  # the profiled step, unless the machine was faster
        rate = point["flops"] / products / point["ceiling"]
        cells = [point["model"], point["workload"], f"{whole:.2f}", f"{products / whole:.0%}", f"{rate:.0%}"]
        cells += [f"{part / whole:.0%}" for part in (attention, whole - products - attention)]
        cells += [f"{whole / part:.2f}" for part in (products + attention, products)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stored() -> list[Point]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["5M", "25M", "smollm2-135m"])
    parser.add_argument("--workloads", nargs="*", default=["short", "long", "prefix"])
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # of verifier processes
    points = {(point["model"], point["workload"]): point for point in stored()}
    for entry in ENTRIES:
        if not args.table and entry.model in args.models and entry.workload in args.workloads:
            points[entry.model, entry.workload] = measure(entry)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text("".join(json.dumps(point) + "\n" for point in points.values()))
    print(table(list(points.values())))


if __name__ == "__main__":
    main()

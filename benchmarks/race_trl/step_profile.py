"""Where our step's time goes in the race, and how fast it could be at most with torch's kernels.

    OMP_NUM_THREADS=1 python benchmarks/race_trl/step_profile.py --models 5M 25M smollm2-135m
    python benchmarks/race_trl/step_profile.py --table

A step of the race's recipe, one thread: its CPU seconds, median of three, and the share of kinds of operations in a
further one under torch's profiler. *Products* are matrix products of weights, *attention* its fused and batched ones,
*other operations* are norms, activations, copies, sums, softmax and the optimizer, and *Python* is the rest of the step
without a profiler. *Of ceiling* is the rate of the products against one of 1,024 x 1,024 in the same dtype.

The last columns divide TRL's seconds by what would be left: the race's ratio if Python cost nothing, if only products
and attention did, and if only products did. ``race.py`` has to have stored that ratio first.
"""

from __future__ import annotations

import argparse
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
from race import ENTRIES, HERE, LAPS, WARM_UP_STEPS, _per_token, job_of, read
from sides import heliostat_recipe
from torch.profiler import ProfilerActivity, profile

from heliostat.research import Experiment, open_experiment

RESULTS = HERE / "results" / "step_profile.jsonl"
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::mkldnn_linear", "aten::linear", "mkldnn::", "aten::_mm"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::_flash_attention"),
}
"""Kind -> beginnings of the names of its operations; every other one is of the kind *other operations*."""
OTHER, PYTHON = "other operations", "Python"
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
        _, job = job_of("heliostat", entry, Path(folder), NUM_STEPS, 0, 1)
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


def ratio_of(point: Point) -> float | None:
    """Return the race's ratio on one thread, ``None`` if it is not stored."""
    laps = [
        lap
        for lap in read(LAPS)
        if (lap["model"], lap["workload"], lap["threads"]) == (point["model"], point["workload"], 1)
        and lap["step"] > WARM_UP_STEPS
    ]
    sides = [[lap for lap in laps if lap["contender"] == name] for name in ("trl bfloat16", "heliostat")]
    return _per_token(sides[0], "cpu_s") / _per_token(sides[1], "cpu_s") if all(sides) else None


def table(points: list[Point]) -> str:
    """Write a line for each cell."""
    lines = [
        "| model | prompts | CPU s/step | products | of ceiling | attention | other operations | Python | x TRL "
        "| without Python | products and attention | products |",
        f"|---|---|{'--:|' * 10}",
    ]
    for point in points:
        whole, parts = point["cpu_s"], point["seconds"]
        products, attention, other = (parts.get(kind, 0.0) for kind in ("products", "attention", OTHER))
        python = max(0.0, whole - products - attention - other)
        rate = point["flops"] / products / point["ceiling"]
        cells = [point["model"], point["workload"], f"{whole:.2f}", f"{products / whole:.0%}", f"{rate:.0%}"]
        cells += [f"{part / whole:.0%}" for part in (attention, other, python)]
        ratio = ratio_of(point)
        left = (whole, whole - python, products + attention, products)
        cells += ["–"] * 4 if ratio is None else [f"{ratio * whole / part:.1f}" for part in left]
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

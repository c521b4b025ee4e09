"""Post-training with each optimizer by the library's own trainer: PMD-mean on sums, from one warm-started model.

    OMP_NUM_THREADS=1 python studies/optimizers/posttraining.py --work /tmp/optim-pmd --minutes 20

Every optimizer tries the same number of learning rates on one seed, and three further seeds report its best. Success is
the probability of the right answer (a few tokens, one right answer), so evaluations have no noise of their own; greedy
success is beside it. Runs are appended to ``posttraining.jsonl``. Left out: the table (``page``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from heliostat import load_recipe, sft
from heliostat.config import Recipe
from heliostat.models import encode_solution
from heliostat.research import Experiment, open_experiment
from heliostat.train import run_recipe
from heliostat.types import Problem

HERE = Path(__file__).parent
RESULTS = HERE / "posttraining.jsonl"
TUNING_SEED, SEEDS = 0, (1, 2, 3)
TOKENS = 16384  # of one forward

ADAM, SGD = (1e-3, 3e-4, 3e-3, 1e-4, 3e-5), (0.03, 0.01, 0.1, 0.003, 0.001)
ARMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "adamw": ({}, ADAM),
    "kronecker-sum": ({}, ADAM),
    "kronecker-product": ({}, ADAM),
    "reng": ({"rho": 0.01}, ADAM),
    "sgd": ({"momentum": 0.9}, SGD),
    "rank1": ({"damping": 1.0}, SGD),
    "rkalman": ({"covariance": 1.0, "forgetting": 0.99}, SGD),
    "eva": ({"damping": 0.3, "adamw_lr": 1e-3}, (0.01, 0.003, 0.03, 0.001, 3e-4)),
    "ring": ({"damping": 0.01, "rho": 0.1, "adamw_lr": 1e-3}, (3e-3, 1e-2, 1e-3, 3e-2, 3e-4)),
}
"""Settings beside the defaults, and learning rates in the order in which they are tried."""


def start_recipe(work: Path) -> Recipe:
    """The study's recipe on every sum of two numbers below 30."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "problems.jsonl"
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(30) for b in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_recipe(str(HERE / "posttraining.toml"), {"task.path": str(path)})


def arm_recipe(recipe: Recipe, warm: Path, name: str, lr: float, seed: int) -> Recipe:
    """One run from the warm-started model."""
    data = recipe.model_dump()
    data["model"] |= {"path": str(warm), "settings": {}}
    data["warm_start"]["num_steps"] = 0
    data["optimizer"] |= {"name": name, "lr": lr, **ARMS[name][0]}
    data["run"]["seed"] = seed
    return Recipe.model_validate(data)


def success(recipe: Recipe, model: Path) -> tuple[float, float]:
    """Return the mean probability of the right held-out answers, and the share that greedy decoding solves."""
    settings = {"model.path": str(model), "model.settings": {}, "train.tokens_per_microbatch": TOKENS}
    with open_experiment(recipe, settings) as experiment:
        problems = experiment.heldout
        probability = sum(float(logp.sum().exp()) for logp in experiment.score_solutions(problems))
        greedy = sum(is_greedy(experiment, problem) for problem in problems)
    return probability / len(problems), greedy / len(problems)


@torch.no_grad()
def is_greedy(experiment: Experiment, problem: Problem) -> bool:
    """Return whether every token of the right answer is the likeliest one."""
    loaded, prompt = experiment.loaded, experiment.bundle.prompt(problem)
    answer = torch.tensor(encode_solution(loaded, prompt, problem.solution or ""))
    ids = torch.cat([torch.tensor(prompt.context_ids), answer])
    logits = loaded.model(input_ids=ids[None]).logits[0, -len(answer) - 1 : -1]
    return bool((logits.argmax(-1) == answer).all())


def run(recipe: Recipe, warm: Path, work: Path, name: str, lr: float, seed: int) -> dict[str, Any]:
    folder, began = work / f"{name}-{lr:g}-{seed}", time.process_time()
    shutil.rmtree(folder, ignore_errors=True)
    result = run_recipe(arm_recipe(recipe, warm, name, lr, seed), folder)
    row = {"arm": name, "lr": lr, "seed": seed, "status": result.status, "cpu_s": round(time.process_time() - began, 1)}
    if result.status == "finished":
        row["success"], row["greedy"] = success(recipe, folder / "model")
    shutil.rmtree(folder, ignore_errors=True)
    return row


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def tuned(rows: list[dict[str, Any]], name: str) -> float:
    """The learning rate with the highest success on the tuning seed."""
    tried = [row for row in rows if (row["arm"], row["seed"]) == (name, TUNING_SEED)]
    return max(tried, key=lambda row: row.get("success", -1.0))["lr"]


def plan(rows: list[dict[str, Any]], num_rates: int) -> Iterator[tuple[str, float, int]]:
    """All tuning runs, then seed by seed."""
    for number in range(num_rates):
        yield from ((name, rates[number], TUNING_SEED) for name, (_, rates) in ARMS.items())
    for seed in SEEDS:
        yield from ((name, tuned(rows, name), seed) for name in ARMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for problems, start model and runs")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of this call")
    parser.add_argument("--num-rates", type=int, default=5, help="learning rates tried per optimizer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = start_recipe(arguments.work), stored()
    warm = sft(recipe, run_dir=arguments.work / "start").folder / "model"
    if not any(row["arm"] == "start" for row in rows):
        rows.append(
            {
                "arm": "start",
                "lr": 0.0,
                "seed": 0,
                **dict(zip(("success", "greedy"), success(recipe, warm), strict=True)),
            }
        )
        RESULTS.write_text(json.dumps(rows[-1]) + "\n")
    for name, lr, seed in plan(rows, arguments.num_rates):
        if any((row["arm"], row["lr"], row["seed"]) == (name, lr, seed) for row in rows):
            continue
        if time.process_time() > 60 * arguments.minutes:
            print("to be continued")
            return
        rows.append(run(recipe, warm, arguments.work, name, lr, seed))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")


if __name__ == "__main__":
    main()

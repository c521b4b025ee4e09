"""Post-training with AdamW, SGD, momentum SGD, Muon and Kronecker-product: three model sizes, whole weights and LoRA.

    OMP_NUM_THREADS=1 python studies/optimizers/posttraining_sizes.py --work /tmp/sizes --minutes 30    # goes on

Each arm tries three learning rates on one seed, a factor of about three apart, and one more beyond the best while that
is at an edge, up to seven. Three further seeds run the best rate for the same number of tokens, and two run it for
AdamW's CPU time where a step costs more or less than AdamW's. Runs are appended to ``posttraining-sizes.jsonl``.

Left out: the task and the measure of success (``posttraining``), gradient spectra (``gradient_spectra``), tables
(``posttraining_sizes_page``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from posttraining import SEEDS, TUNING_SEED, start_recipe, success

from heliostat import sft
from heliostat.config import Recipe
from heliostat.train import run_recipe

HERE = Path(__file__).parent
RESULTS = HERE / "posttraining-sizes.jsonl"
NUM_STEPS, NUM_RATES, MAX_RATES = 96, 3, 7
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""Every learning rate that may be tried."""
SHAPES = {"0.02M": (32, 80, 2), "0.1M": (64, 160, 2), "0.4M": (128, 320, 4)}
"""Width, width of the feed-forward layers, and heads of each size."""
WEIGHTS: dict[str, dict[str, Any]] = {"whole": {}, "lora": {"rank": 8, "alpha": 16}}
SETTINGS = [
    *(("0.1M", "whole"), ("0.1M", "lora"), ("0.02M", "whole"), ("0.4M", "whole"), ("0.02M", "lora"), ("0.4M", "lora")),
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """An optimizer's settings, and the middle of its first learning rates on whole weights and on LoRA."""

    optimizer: dict[str, Any]
    middle: dict[str, float]


ADAM_LIKE, SGD_LIKE = {"whole": 3e-4, "lora": 3e-3}, {"whole": 1e-2, "lora": 0.1}
ARMS = {
    "adamw": Arm({"name": "adamw"}, ADAM_LIKE),
    "sgd": Arm({"name": "sgd"}, SGD_LIKE),
    "momentum": Arm({"name": "sgd", "momentum": 0.9}, {"whole": 1e-3, "lora": 1e-2}),
    "muon": Arm({"name": "muon_recipe:Muon", "import_from": str(HERE)}, ADAM_LIKE),
    "kronecker-product": Arm({"name": "kronecker-product"}, ADAM_LIKE),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run; ``num_steps`` differs from ``NUM_STEPS`` where the CPU time is AdamW's."""

    size: str
    weights: str
    arm: str
    lr: float
    seed: int
    num_steps: int = NUM_STEPS

    @property
    def key(self) -> Row:
        return {field: getattr(self, field) for field in self.__slots__}


def sized_recipe(work: Path, size: str) -> Recipe:
    """The post-training study's recipe with a model of another width."""
    width, inner, heads = SHAPES[size]
    data = start_recipe(work).model_dump()
    data["model"]["settings"] |= {"hidden_size": width, "intermediate_size": inner}
    data["model"]["settings"] |= {"num_heads": heads, "num_kv_heads": heads}
    return Recipe.model_validate(data)


def arm_recipe(recipe: Recipe, warm: Path, run: Run) -> Recipe:
    """One run from the warm-started model."""
    data = recipe.model_dump()
    data["model"] |= {"path": str(warm), "settings": {}}
    data["warm_start"]["num_steps"] = 0
    data["lora"] |= WEIGHTS[run.weights]
    data["optimizer"] |= {"lr": run.lr, **ARMS[run.arm].optimizer}
    data["run"]["seed"] = run.seed
    data["train"]["num_steps"] = run.num_steps
    data["eval"] |= {"every": 0, "final_samples": 1}
    data["guard"]["panel_every"] = 0
    data["audit"]["enabled"] = False
    return Recipe.model_validate(data)


def carry_out(recipe: Recipe, warm: Path, work: Path, run: Run) -> Row:
    """Train, and measure success on the held-out problems."""
    folder, began = work / "run", time.process_time()
    shutil.rmtree(folder, ignore_errors=True)
    result = run_recipe(arm_recipe(recipe, warm, run), folder)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    row = {**run.key, "status": result.status, "cpu_s": round(time.process_time() - began, 2)}
    if result.status == "finished":
        row["success"], row["greedy"] = success(recipe, folder / "model")
    shutil.rmtree(folder, ignore_errors=True)
    return row


def stored() -> list[Row]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def of_setting(rows: list[Row], size: str, weights: str, arm: str) -> list[Row]:
    return [row for row in rows if (row["size"], row["weights"], row["arm"]) == (size, weights, arm)]


def tuning(rows: list[Row]) -> dict[float, float]:
    """Return success by learning rate on the tuning seed; 0 for a run that did not finish."""
    tried = [row for row in rows if row["seed"] == TUNING_SEED and row["num_steps"] == NUM_STEPS]
    return {row["lr"]: row.get("success", 0.0) for row in tried}


def best_rate(rows: list[Row]) -> float:
    tried = tuning(rows)
    return max(tried, key=lambda lr: tried[lr])


def next_rate(rows: list[Row], arm: str, weights: str) -> float | None:
    """Return the rate that the rule tries next, None when it has tried all."""
    middle, tried = LADDER.index(ARMS[arm].middle[weights]), tuning(rows)
    first = LADDER[middle - NUM_RATES // 2 : middle + NUM_RATES // 2 + 1]
    if missing := [lr for lr in first if lr not in tried]:
        return missing[0]
    best = best_rate(rows)
    step = {min(tried): -1, max(tried): 1}.get(best, 0)
    place = LADDER.index(best) + step
    return LADDER[place] if step and len(tried) < MAX_RATES and 0 <= place < len(LADDER) else None


def step_seconds(rows: list[Row], size: str, weights: str, arm: str) -> float:
    """CPU seconds of a step: the median run less the set-up, which a run of no steps measures."""
    own = of_setting(rows, size, weights, arm)
    setup = next(row["cpu_s"] for row in of_setting(rows, size, weights, "adamw") if row["num_steps"] == 0)
    return (statistics.median(row["cpu_s"] for row in own if row["num_steps"] == NUM_STEPS) - setup) / NUM_STEPS


def of_equal_time(rows: list[Row], size: str, weights: str, arm: str) -> int:
    """Return the number of steps that take as long as AdamW's run; ``NUM_STEPS`` where they differ by under a tenth."""
    ratio = step_seconds(rows, size, weights, "adamw") / step_seconds(rows, size, weights, arm)
    return NUM_STEPS if abs(ratio - 1) < 0.1 else round(NUM_STEPS * ratio)


def plan(rows: list[Row]) -> Iterator[Run]:
    """Setting by setting: all rates and two seeds; then everywhere a third seed and the runs of equal time."""
    for size, weights in SETTINGS:
        yield Run(size, weights, "adamw", 1e-4, TUNING_SEED, 0)
        for arm in ARMS:
            while (lr := next_rate(of_setting(rows, size, weights, arm), arm, weights)) is not None:
                yield Run(size, weights, arm, lr, TUNING_SEED)
        yield from (_best(rows, size, weights, arm, seed) for seed in SEEDS[:2] for arm in ARMS)
    for size, weights in SETTINGS:
        for arm in ARMS:
            yield _best(rows, size, weights, arm, SEEDS[2])
            if (num_steps := of_equal_time(rows, size, weights, arm)) != NUM_STEPS and arm != "adamw":
                yield from (_best(rows, size, weights, arm, seed, num_steps) for seed in SEEDS[:2])


def _best(rows: list[Row], size: str, weights: str, arm: str, seed: int, num_steps: int = NUM_STEPS) -> Run:
    return Run(size, weights, arm, best_rate(of_setting(rows, size, weights, arm)), seed, num_steps)


def is_stored(rows: list[Row], run: Run) -> bool:
    """Return whether a run was made; those of equal time may have been planned with a few steps more or less."""
    own = of_setting(rows, run.size, run.weights, run.arm)
    same = [row for row in own if (row["lr"], row["seed"]) == (run.lr, run.seed)]
    if run.num_steps in (0, NUM_STEPS):
        return any(row["num_steps"] == run.num_steps for row in same)
    return any(row["num_steps"] not in (0, NUM_STEPS) for row in same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for problems, start models and runs")
    parser.add_argument("--minutes", type=float, default=30.0, help="CPU minutes of this call")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = stored()
    starts: dict[str, tuple[Recipe, Path]] = {}
    for run in plan(rows):
        if is_stored(rows, run):
            continue
        if time.process_time() > 60 * arguments.minutes:
            print("to be continued")
            return
        work = arguments.work / run.size
        if run.size not in starts:
            recipe = sized_recipe(work, run.size)
            starts[run.size] = recipe, sft(recipe, run_dir=work / "start").folder / "model"
        rows.append(carry_out(*starts[run.size], work, run))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()

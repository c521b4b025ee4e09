"""The two tasks, each with its model, its start and its exact success.

    T3       a chain of 16 steps of arithmetic (``studies/prefixrl``) by a model of 1.4M weights, warm-started here
    SmolLM2  sums of two numbers below 30 (``studies/pmd``) by SmolLM2-135M-Instruct as it is published

Left out: arms, seeds and training (``against_whole``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from heliostat import load_recipe, sft
from heliostat.config import Recipe
from heliostat.research import Experiment

HERE = Path(__file__).parent
for folder in ("prefixrl", "pmd"):
    sys.path.insert(0, str(HERE.parent / folder))

from confirmation import line_ends, study_recipe, success  # noqa: E402
from tasks import TASKS  # type: ignore[import-not-found]  # noqa: E402

NUM_WARM, SEED_WARM, SEED_PROBLEMS = 20000, 2, 1
NUM_SUMS_MEASURED, NUM_WARMUP = 32, 2
ENDS: dict[str, Tensor] = {}
"""Ids that end an answer, by model."""


@dataclass(frozen=True)
class Subject:
    """A task with its model.

    Attributes:
        recipe: makes the start in a folder if it is not there yet, and returns the recipe that begins with it.
        success: mean probability of the right answer over held-out problems, without sampling.
        num_steps: of every run.
        check_every: steps between two measurements of success.
        rates: the first three learning rates of whole weights and of LoRA, in rising order.
        arms: in the order in which they run.
    """

    recipe: Callable[[Path], Recipe]
    success: Callable[[Experiment], float]
    num_steps: int
    check_every: int
    rates: dict[str, tuple[float, ...]]
    arms: tuple[str, ...]


def chains(work: Path) -> Recipe:
    """Write T3's problems, warm-start its model on others, and return the recipe that begins with that model."""
    work.mkdir(parents=True, exist_ok=True)
    TASKS["T3"].write(work / "chains.jsonl", 700, SEED_PROBLEMS)
    TASKS["T3"].write(work / "warm.jsonl", NUM_WARM, SEED_WARM)
    fresh = load_recipe(str(HERE / "t3.toml"), {"task.path": str(work / "chains.jsonl")})
    warm = {"task.path": str(work / "warm.jsonl"), "task.num_train": NUM_WARM - fresh.task[0].num_heldout}
    warmed = sft(load_recipe(str(HERE / "t3.toml"), warm), run_dir=work / "start")
    data = fresh.model_dump()
    data["model"] |= {"path": str(warmed.folder / "model"), "settings": {}}
    data["warm_start"]["num_steps"] = 0
    data["optimizer"]["warmup_steps"] = NUM_WARMUP
    return Recipe.model_validate(data)


def success_on_chains(experiment: Experiment) -> float:
    scores = experiment.score_solutions(experiment.heldout)
    return sum(float(logp.double().sum().exp()) for logp in scores) / len(scores)


def sums(work: Path) -> Recipe:
    """Write the sums, and return the recipe of SmolLM2 on them."""
    data = study_recipe(work).model_dump()
    data["rollout"] |= {"prompts_per_step": 4, "group_size": 8}
    data["optimizer"] |= {"schedule": "constant", "warmup_steps": NUM_WARMUP}
    return Recipe.model_validate(data)


def success_on_sums(experiment: Experiment) -> float:
    problems = experiment.heldout[:NUM_SUMS_MEASURED]
    name = experiment.loaded.name
    if name not in ENDS:
        ENDS[name] = line_ends(experiment.loaded)
    return sum(success(experiment.loaded, problems, ENDS[name])) / len(problems)


SUBJECTS = {
    "T3": Subject(
        recipe=chains,
        success=success_on_chains,
        num_steps=16,
        check_every=4,
        rates={"whole": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3)},
        arms=("whole", "rank 1", "rank 8", "rank 64"),
    ),
    "SmolLM2": Subject(
        recipe=sums,
        success=success_on_sums,
        num_steps=6,
        check_every=3,
        rates={"whole": (3e-6, 1e-5, 3e-5), "lora": (1e-4, 3e-4, 1e-3)},
        arms=("whole", "rank 8", "rank 1"),
    ),
}

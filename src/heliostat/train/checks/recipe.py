"""Checks of a recipe that need neither data nor weights, and the loading of its tasks.

The checks raise ``ConfigError`` before anything expensive is loaded.
"""

from __future__ import annotations

import torch

from heliostat.config import ConfigError, Recipe
from heliostat.extras import require
from heliostat.objectives import Objective, build_objective
from heliostat.optim import optimizer_settings
from heliostat.optim.conformance import refuse_nonconforming
from heliostat.rollout import engine_builder
from heliostat.tasks import Task, load_task
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.model_bundle import require_packages


def check_recipe(recipe: Recipe) -> Objective:
    """Refuse recipes that cannot work with any data or weights, and build the objective.

    Raises:
        ConfigError: unknown objective, optimizer, engine or setting, an own one that breaks a promise, or a group size
            without a learning signal.
    """
    if recipe.lora.modules_to_save and not recipe.lora.rank:
        raise ConfigError("lora.modules_to_save is only used with lora.rank above 0 (now 0)")
    if recipe.rollout.sync == "adapter" and not recipe.lora.rank:
        raise ConfigError("rollout.sync = 'adapter' is only used with lora.rank above 0 (now 0)")
    require_packages(recipe)
    engine_builder(recipe.rollout)
    optimizer_settings(recipe.optimizer)
    refuse_nonconforming(recipe.optimizer)
    objective = build_objective(recipe.objective)
    _check_teacher(recipe)
    if recipe.train.num_steps > 0 and not (recipe.teacher.enabled and recipe.teacher.alone):
        _check_group_size(recipe, objective)
    return objective


ACTS_ON_REWARDS = ("entropy-bonus", "variety-bonus", "clip-high", "covariance", "tau", "kl-ref")
"""Actuators of the guard that change the objective, or the rewards that it sees."""


def _check_teacher(recipe: Recipe) -> None:
    """Refuse a missing client of a teacher's server, and settings without effect where a teacher alone trains."""
    if recipe.teacher.url:
        require("teacher.url", "server", "httpx2")
    if recipe.teacher.enabled and recipe.teacher.alone and recipe.guard.actuator in ACTS_ON_REWARDS:
        raise ConfigError(
            f"guard.actuator = '{recipe.guard.actuator}' acts through the objective of rewards, which teacher.alone "
            "leaves out; set teacher.alone = false, or guard.actuator = 'none'"
        )


def _check_group_size(recipe: Recipe, objective: Objective) -> None:
    """Refuse group sizes with zero advantages for all rewards, by a trial of the objective."""
    size = recipe.rollout.group_size
    try:
        learns = bool((objective.advantages(torch.arange(size, dtype=torch.float64)) != 0).any())
    except ValueError:  # the baseline leaves the completion out, and nothing is left
        learns = False
    if not learns:
        raise ConfigError(
            f"rollout.group_size = {size} leaves nothing to learn from: objective '{recipe.objective.name}' compares "
            "each reward with those of its own group; set rollout.group_size to 2 or more (8 is the default)"
        )


def check_ranks(recipe: Recipe, runtime: Runtime) -> None:
    """Refuse settings that work on one rank and not on several or sharded ones.

    Raises:
        ConfigError: the recipe has such a setting.
    """
    if runtime.world_size == 1:
        return
    if recipe.rollout.on_server and recipe.rollout.max_staleness:
        raise ConfigError(
            "rollout.max_staleness above 0 on a rollout server works for one trainer process: ranks sync their weights "
            "together, and not from a thread each; start it without torchrun, or set rollout.max_staleness = 0"
        )
    if runtime.sharded and recipe.rollout.max_staleness:
        raise ConfigError(
            "rollout.max_staleness above 0 needs a whole copy of the weights on every rank, which sharding avoids; "
            "set distributed.placement = 'replicated', or rollout.max_staleness = 0"
        )
    name, settings = recipe.optimizer.name, recipe.optimizer.settings
    why = ""
    if runtime.sharded and name == "reng" and settings.get("mode") == "double-backward":
        why = "its double backward cannot differentiate sharded weights; set optimizer.mode = 'finite-difference'"
    elif runtime.sharded and name == "rkalman" and settings.get("form") == "low-rank":
        why = "its low-rank rows are not sharded; set optimizer.form = 'diagonal'"
    if why:
        raise ConfigError(f"optimizer '{name}' does not work on {runtime.world_size} ranks like this: {why}")


def load_tasks(recipe: Recipe) -> list[Task]:
    """Load all tasks of a recipe; their names must differ, since results are reported by name."""
    tasks = [
        load_task(section, recipe.run.seed, recipe.environment, is_judged=recipe.judge.enabled)
        for section in recipe.task
    ]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tasks of the recipe have the same name: {', '.join(names)}")
    return tasks

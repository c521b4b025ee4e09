"""From a recipe to the parts of a run, cheapest failure first: names and settings, then data, then weights.

Left out: what the parts do together (``train.trainer``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from heliostat.config import ConfigError, Recipe
from heliostat.models import LoadedModel, encode_problem, load_model, twin_of
from heliostat.models.lora import add_adapters
from heliostat.models.templates import day_of, with_day
from heliostat.objectives import Objective, build_objective
from heliostat.optim import BaseOptimizer, Schedule, accumulate_in_float32, build_optimizer, optimizer_settings
from heliostat.optim.distributed.replicas import ALONE
from heliostat.rollout import DecodeLimits, Engine, build_engine
from heliostat.tasks import Task, load_task
from heliostat.train.exact import exact_layouts
from heliostat.train.feedback import Feedback
from heliostat.train.gathered_engine import GatheredEngine
from heliostat.train.guarded_step import GuardedStep
from heliostat.train.layouts import Alone
from heliostat.train.policy import Policy
from heliostat.train.precision import NAMES
from heliostat.train.runtime import Runtime
from heliostat.train.sharding import shard
from heliostat.train.update import Updater
from heliostat.types import Problem, Prompt


def check_recipe(recipe: Recipe) -> Objective:
    """Everything about a recipe that can be refused without data or weights.

    Raises:
        ConfigError: unknown objective, optimizer or setting, or a group size from which nothing can be learned.
    """
    if recipe.lora.modules_to_save and not recipe.lora.rank:
        raise ConfigError("lora.modules_to_save is only used with lora.rank above 0 (now 0)")
    optimizer_settings(recipe.optimizer)
    objective = build_objective(recipe.objective)
    if recipe.train.num_steps > 0:
        _check_group_size(recipe, objective)
    return objective


def _check_group_size(recipe: Recipe, objective: Objective) -> None:
    """Refuse groups in which every advantage is 0 whatever the rewards; the objective itself is asked."""
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
    """What works on one rank and not on these.

    Raises:
        ConfigError: the recipe asks for it.
    """
    if runtime.world_size == 1:
        return
    if recipe.rollout.engine == "vllm" and recipe.rollout.max_staleness:
        raise ConfigError(
            "rollout.max_staleness above 0 on a rollout server works for one trainer process: ranks hand weights over "
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
        why = "its double backward cannot differentiate weights that are cut; set optimizer.mode = 'finite-difference'"
    elif runtime.sharded and name == "rkalman" and settings.get("form") == "low-rank":
        why = "its low-rank rows are not cut over ranks; set optimizer.form = 'diagonal'"
    if why:
        raise ConfigError(f"optimizer '{name}' does not work on {runtime.world_size} ranks like this: {why}")


def load_tasks(recipe: Recipe) -> list[Task]:
    """All tasks of a recipe; their names must differ, since results are reported by name."""
    tasks = [load_task(section, recipe.run.seed) for section in recipe.task]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tasks of the recipe have the same name: {', '.join(names)}")
    return tasks


@dataclass(frozen=True, slots=True)
class Bench:
    """A model with its engine, ready to be sampled from and scored.

    Attributes:
        numerics: the type that log-probabilities are computed in.
        twin: what samples ahead, where the recipe asks for it.
    """

    loaded: LoadedModel
    engine: Engine
    recipe: Recipe
    numerics: torch.dtype
    twin: LoadedModel | None = None

    def prompt(self, problem: Problem) -> Prompt:
        """A problem in this model's tokens."""
        return encode_problem(self.loaded, problem, self.recipe.model.chat, self.recipe.model.system)


def set_up_sampler(recipe: Recipe, runtime: Runtime, keep_day: Callable[[str], str] | None = None) -> Bench:
    """Load the model onto the run's device and put an engine on it. Dropout stays off throughout.

    Args:
        keep_day: gives the day that a chat template shall tell for the one that it would.
    """
    loaded = load_model(recipe.model, recipe.run.seed)
    if keep_day is not None and (today := day_of(loaded)) is not None:
        loaded = with_day(loaded, keep_day(today))
    if recipe.lora.rank:
        add_adapters(loaded.model, recipe.lora, recipe.run.seed)
    loaded.model.to(device=runtime.device).eval()  # type: ignore[call-arg]  # transformers wraps it untyped
    section = recipe.rollout
    limits = DecodeLimits(section.max_new_tokens, section.max_rows, section.stop)
    engine = build_engine(loaded, limits, section, runtime.led)
    return Bench(loaded, engine, recipe, loaded.model.dtype)


def set_up_model(recipe: Recipe, runtime: Runtime, keep_day: Callable[[str], str] | None = None) -> Bench:
    """Set up a sampler whose model can also be scored and trained, cut over ranks where the recipe asks for it."""
    bench = set_up_sampler(recipe, runtime, keep_day)
    loaded = bench.loaded
    _try_layouts(loaded, runtime)  # like the engine before weights are cut: that would leave them gathered
    twin = twin_of(loaded) if recipe.rollout.max_staleness else None
    numerics = _shard(loaded, recipe, runtime)
    engine = GatheredEngine(bench.engine, loaded.model) if runtime.sharded else bench.engine
    return Bench(loaded, engine, recipe, numerics, twin)


def _try_layouts(loaded: LoadedModel, runtime: Runtime) -> None:
    """Find the layouts that are right for a model, while its weights are whole.

    Raises:
        ConfigError: the model has no gradient, or rows must be run one by one and weights are to be cut over ranks.
    """
    exact = exact_layouts(loaded)
    if exact.untrainable:
        raise ConfigError(f"model '{loaded.name}' can be sampled from and not trained: {exact.untrainable}")
    if isinstance(exact.single, Alone) and runtime.sharded:
        raise ConfigError(
            f"model '{loaded.name}' must be run one row at a time, and ranks that hold parts of its weights run in "
            f"step; set distributed.placement = 'replicated'"
        )


def _shard(loaded: LoadedModel, recipe: Recipe, runtime: Runtime) -> torch.dtype:
    """Cut the weights where the recipe and the ranks ask for it; returns the type that is computed in."""
    stored: torch.dtype = loaded.model.dtype
    if not runtime.sharded:
        return stored
    numerics = torch.bfloat16 if recipe.distributed.compute_dtype == "bfloat16" else stored
    shard(loaded.model, runtime.device, None if numerics == stored else numerics)
    return numerics


def load_reference(recipe: Recipe, folder: Path, runtime: Runtime, dtype: torch.dtype) -> Policy:
    """The frozen policy saved in ``folder``, on the run's device, in the type of the policy that it is compared with.

    Args:
        dtype: of the policy's weights; ``auto`` may mean another for a folder than for the model the run began from.
    """
    section = recipe.model.model_copy(update={"path": str(folder), "settings": {}, "dtype": NAMES[dtype]})
    loaded = load_model(section, recipe.run.seed)
    loaded.model.to(device=runtime.device).eval().requires_grad_(False)  # type: ignore[call-arg]  # wrapped untyped
    _try_layouts(loaded, runtime)
    _shard(loaded, recipe, runtime)
    return Policy(loaded, recipe.rollout.temperature, recipe.train.shared_prompt)


def make_feedback(recipe: Recipe, bench: Bench, extra: Sequence[Problem]) -> Feedback:
    """What holds a statistic during supervised steps, with the policy that they train."""
    policy = Policy(bench.loaded, temperature=1.0, shared_prompt=False, recompute=recipe.train.recompute)
    return Feedback(recipe.feedback, bench.engine, policy, bench.prompt, recipe.run.seed, extra)


def make_updater(recipe: Recipe, bench: Bench, objective: Objective, runtime: Runtime) -> Updater:
    """The policy-gradient side of a run."""
    num_updates = recipe.train.num_steps * recipe.train.updates_per_step
    optimizer = build_optimizer(recipe.optimizer, bench.loaded.model)
    accumulate_in_float32(bench.loaded.model.parameters())
    if isinstance(optimizer, BaseOptimizer) and optimizer.extra_pass == "scores":
        optimizer.process_group = ALONE  # every rank takes all scores, of the same completions
    return Updater(
        policy=Policy(
            bench.loaded, recipe.rollout.temperature, recipe.train.shared_prompt, recompute=recipe.train.recompute
        ),
        objective=objective,
        guarded=GuardedStep(optimizer, recipe.optimizer.max_grad_norm, recipe.train.max_bad_steps),
        schedule=Schedule.from_section(recipe.optimizer, num_updates),
        runtime=runtime,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
        drop_zero_signal=recipe.train.drop_zero_signal,
        # In float32 the in-process sampler's numbers are the trainer's to 1e-5 (the parity bound watches over it).
        anchor_from_sampler=recipe.rollout.engine == "torch" and bench.numerics == torch.float32,
    )

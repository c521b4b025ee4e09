"""A model with its rollout engine, loaded as a recipe says: to sample from, to train, or as a frozen reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from heliostat.config import ConfigError, LoraSection, ModelSection, Recipe
from heliostat.extras import require
from heliostat.models import LoadedModel, encode_problem, load_model, sampler_copy_of
from heliostat.models.lora import add_adapters
from heliostat.models.prompts.chat_template import day_of, with_day
from heliostat.rollout import DecodeLimits, Engine, ServerEngine, engine_builder
from heliostat.rollout.server.nccl_transfer import require_nccl
from heliostat.train.distributed.fsdp import shard
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.distributed.unsharded_engine import UnshardedEngine
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.layouts import Alone
from heliostat.train.logprobs.policy import Policy
from heliostat.train.run_folder.stored_dtype import NAMES, as_saved
from heliostat.types import Problem, Prompt


def _keep_memory() -> None:
    """Do nothing, as engines in the trainer's process do between two samplings."""


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A model with its engine, ready to be sampled from and scored.

    Attributes:
        numerics: the dtype in which log-probabilities are computed.
        sampler_copy: the copy that samples ahead, if the recipe asks for it.
        rest: frees the memory that only sampling needs, until the next sampling; all ranks call it together.
    """

    loaded: LoadedModel
    engine: Engine
    recipe: Recipe
    numerics: torch.dtype
    sampler_copy: LoadedModel | None = None
    rest: Callable[[], None] = _keep_memory

    def prompt(self, problem: Problem) -> Prompt:
        """Encode a problem in this model's tokens."""
        return encode_problem(self.loaded, problem, self.recipe.model.chat, self.recipe.model.system)


def completion_budget(recipe: Recipe) -> tuple[str, int]:
    """Return the setting that limits the tokens after a prompt, and its value; an episode has a budget of its own."""
    if recipe.environment.enabled:
        return "environment.max_tokens", recipe.environment.max_tokens
    return "rollout.max_new_tokens", recipe.rollout.max_new_tokens


def require_packages(recipe: Recipe) -> None:
    """Refuse a recipe whose model or engine needs a package that is not installed; nothing is loaded yet.

    Raises:
        ConfigError: one is missing.
    """
    if recipe.lora.rank:
        require(f"lora.rank = {recipe.lora.rank}", "lora", "peft")
    if recipe.rollout.on_server:
        require(f"rollout.engine = '{recipe.rollout.engine}'", "server", "httpx2")
    if recipe.rollout.sync == "nccl":
        require_nccl()


def set_up_sampler(recipe: Recipe, runtime: Runtime, keep_day: Callable[[str], str] | None = None) -> ModelBundle:
    """Load the model onto the run's device and put an engine on it. Dropout stays off throughout.

    Args:
        keep_day: maps today's date to the date that the chat template shows in this run.
    """
    require_packages(recipe)
    build_engine = engine_builder(recipe.rollout)  # a missing module is reported before the model loads
    loaded = load_model(recipe.model, recipe.run.seed)
    if keep_day is not None and (today := day_of(loaded)) is not None:
        loaded = with_day(loaded, keep_day(today))
    if recipe.lora.rank:
        add_adapters(loaded.model, recipe.lora, recipe.run.seed)
    loaded.model.to(device=runtime.device).eval()  # type: ignore[call-arg]  # transformers wraps it untyped
    section = recipe.rollout
    limits = DecodeLimits(completion_budget(recipe)[1], section.max_rows, section.stop)
    engine = build_engine(loaded, limits, section, runtime.run_on_main, recipe.environment.enabled)
    rest = engine.rest if isinstance(engine, ServerEngine) else _keep_memory
    return ModelBundle(loaded, engine, recipe, loaded.model.dtype, rest=rest)


def set_up_model(recipe: Recipe, runtime: Runtime, keep_day: Callable[[str], str] | None = None) -> ModelBundle:
    """Set up a sampler whose model can also be scored and trained, sharded where the recipe asks for it."""
    bundle = set_up_sampler(recipe, runtime, keep_day)
    loaded = bundle.loaded
    _try_layouts(loaded, runtime)  # like the engine, before sharding: a trial would leave the weights gathered
    sampler_copy = sampler_copy_of(loaded) if recipe.rollout.max_staleness else None
    numerics = _shard(loaded, recipe, runtime)
    engine = UnshardedEngine(bundle.engine, loaded.model) if runtime.sharded else bundle.engine
    return ModelBundle(loaded, engine, recipe, numerics, sampler_copy, bundle.rest)


def _try_layouts(loaded: LoadedModel, runtime: Runtime) -> None:
    """Find the exact layouts of a model before its weights are sharded.

    Raises:
        ConfigError: the model has no gradient, or rows must be run one by one and weights are to be sharded.
    """
    exact = exact_layouts(loaded)
    if exact.untrainable:
        raise ConfigError(f"model '{loaded.name}' can be sampled from and not trained: {exact.untrainable}")
    if isinstance(exact.single, Alone) and runtime.sharded:
        raise ConfigError(
            f"model '{loaded.name}' must run one row at a time, but ranks with sharded weights run in lockstep; set "
            "distributed.placement = 'replicated'"
        )


def _shard(loaded: LoadedModel, recipe: Recipe, runtime: Runtime) -> torch.dtype:
    """Shard the weights if the recipe and the ranks ask for it; return the compute dtype."""
    stored: torch.dtype = loaded.model.dtype
    if not runtime.sharded:
        return stored
    numerics = torch.bfloat16 if recipe.distributed.compute_dtype == "bfloat16" else stored
    shard(loaded.model, runtime.device, None if numerics == stored else numerics)
    return numerics


def load_reference(recipe: Recipe, folder: Path, runtime: Runtime, dtype: torch.dtype) -> Policy:
    """Load the frozen policy in ``folder`` onto the run's device, in the dtype of the policy it is compared with.

    Args:
        dtype: the trained policy's dtype; ``auto`` may resolve differently for a folder and for the initial model.
    """
    section = recipe.model.model_copy(update={"path": str(folder), "settings": {}, "dtype": NAMES[dtype]})
    return load_frozen(recipe, section, runtime)


def load_frozen(recipe: Recipe, section: ModelSection, runtime: Runtime) -> Policy:
    """Load a model that is scored and never trained onto the run's device."""
    loaded = load_model(section, recipe.run.seed)
    loaded.model.to(device=runtime.device).eval().requires_grad_(False)  # type: ignore[call-arg]  # wrapped untyped
    _try_layouts(loaded, runtime)
    _shard(loaded, recipe, runtime)
    return Policy(loaded, recipe.rollout.temperature, recipe.train.shared_prompt)


def with_model(recipe: Recipe, path: str) -> Recipe:
    """Return the recipe with another model, without new adapters, in the stored dtype of a run's saved model."""
    section = recipe.model.model_copy(
        update={"path": path, "settings": {} if path != "tiny" else recipe.model.settings}
    )
    return as_saved(recipe.model_copy(update={"model": section, "lora": LoraSection()}))

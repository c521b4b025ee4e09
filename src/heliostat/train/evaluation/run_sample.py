"""A few completions of a model, for inspection."""

from __future__ import annotations

import warnings

from heliostat.config import Recipe
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.sandbox.nested_runs import refuse_nested
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.episodes import with_episodes
from heliostat.train.model_bundle import set_up_sampler, with_model
from heliostat.types import Group, Problem


def run_sample(
    model: str,
    recipe: Recipe,
    *,
    prompt: str | None = None,
    num_samples: int = 3,
    settings: SamplingSettings | None = None,
) -> list[Group]:
    """Sample a few completions of one prompt, or of the recipe's first three held-out problems, without verdicts."""
    refuse_nested("a model")
    runtime = start_runtime(recipe.run)
    bundle = set_up_sampler(with_model(recipe, model), runtime)
    if prompt is not None:
        problems = [Problem("prompt", "prompt", prompt, markup=((0, len(prompt)),))]
    else:
        problems = [problem for task in load_tasks(recipe) for problem in task.heldout][:3]
    settings = settings or SamplingSettings(temperature=recipe.rollout.temperature)
    seed = completion_seed(recipe.run.seed, "sample")
    with VerifierPool((), environment_of(recipe.environment)) as pool:
        bundle = with_episodes(bundle, pool.environments, warnings.warn)
        prompts = [bundle.prompt(problem) for problem in problems]
        return bundle.engine.sample(SampleRequest(prompts, num_samples, settings, seed=seed, policy_step=0))

"""A few completions of a model, for inspection."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

from heliostat.config import Recipe
from heliostat.models import LoadedModel, decode, observation_text
from heliostat.nested_runs import refuse_nested
from heliostat.rollout import SampleRequest, SamplingSettings, completion_seed
from heliostat.tasks import VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.episodes import with_episodes
from heliostat.train.evaluation.conversation import Utterance, conversation
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
    return _sampled(model, recipe, prompt, num_samples, settings)[0]


@dataclass(frozen=True, slots=True)
class SampledConversations:
    """The trajectories of one prompt, as text.

    Attributes:
        prompt: the text that the model read before its first turn.
        conversations: by completion of the group, its turns and the environment's answers.
    """

    group: Group
    prompt: str
    conversations: tuple[tuple[Utterance, ...], ...]


def run_conversations(
    model: str,
    recipe: Recipe,
    *,
    prompt: str | None = None,
    num_samples: int = 3,
    settings: SamplingSettings | None = None,
) -> list[SampledConversations]:
    """Sample as ``run_sample`` does with a recipe that has an environment, and decode every turn."""
    groups, loaded = _sampled(model, recipe, prompt, num_samples, settings)
    text_of, answer_of = partial(decode, loaded), partial(observation_text, loaded)
    return [
        SampledConversations(
            group,
            text_of(group.prompt.token_ids),
            tuple(tuple(conversation(completion, text_of, answer_of)) for completion in group.completions),
        )
        for group in groups
    ]


def _sampled(
    model: str, recipe: Recipe, prompt: str | None, num_samples: int, settings: SamplingSettings | None
) -> tuple[list[Group], LoadedModel]:
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
        request = SampleRequest(prompts, num_samples, settings, seed=seed, policy_step=0)
        return bundle.engine.sample(request), bundle.loaded

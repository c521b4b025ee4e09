"""Builders of a run's parts, from a recipe and a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heliostat.config import Recipe
from heliostat.objectives import Objective
from heliostat.optim import FiniteStep, Schedule, accumulate_in_float32, build_optimizer
from heliostat.optim.replicas import ALONE
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.model_bundle import Bench
from heliostat.train.sft.feedback import Feedback
from heliostat.train.update.safe_step import GuardedStep
from heliostat.train.update.updater import Updater
from heliostat.types import Problem


def make_feedback(recipe: Recipe, bench: Bench, extra: Sequence[Problem]) -> Feedback:
    """What holds a statistic during supervised steps, with the policy that they train."""
    policy = Policy(bench.loaded, temperature=1.0, shared_prompt=False, recompute=recipe.train.recompute)
    return Feedback(recipe.feedback, bench.engine, policy, bench.prompt, recipe.run.seed, extra)


def make_updater(recipe: Recipe, bench: Bench, objective: Objective, runtime: Runtime) -> Updater:
    """The policy-gradient side of a run."""
    num_updates = recipe.train.num_steps * recipe.train.updates_per_step
    optimizer = build_optimizer(recipe.optimizer, bench.loaded.model)
    accumulate_in_float32(bench.loaded.model.parameters())
    if isinstance(optimizer, FiniteStep) and optimizer.extra_pass == "scores":
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

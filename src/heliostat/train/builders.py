"""Builders of a run's parts, from its recipe and context."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heliostat.config import ConfigError, JudgeSection, Recipe
from heliostat.monitors.absolute_monitor import AbsoluteMonitor
from heliostat.monitors.absolute_rules import ABOUT_SIGNAL, ABOUT_SUCCESS, ABSOLUTE_RULES, OF_COMPARISONS
from heliostat.objectives import Objective
from heliostat.optim import BaseOptimizer, Schedule, accumulate_in_float32, build_optimizer
from heliostat.optim.distributed.replicas import ALONE
from heliostat.train.accounting.run_counters import RunCounters
from heliostat.train.data.curriculum import Curriculum
from heliostat.train.data.prefixes import Prefixes, open_prefixes
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.evaluation.heldout import HeldOut
from heliostat.train.guard.actuators import build_actuator
from heliostat.train.guard.first_minute import first_minute_settings
from heliostat.train.guard.panel import panel_of
from heliostat.train.guard.run_guard import RunGuard
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.teacher import Teacher
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.rollouts.planner import RolloutPlanner
from heliostat.train.rollouts.scheduler import RolloutScheduler
from heliostat.train.run_context import RunContext
from heliostat.train.run_progress import RunProgress
from heliostat.train.run_state import ROLLOUTS, Part, RunState, attribute, stateful, surviving
from heliostat.train.sft.feedback import Feedback
from heliostat.train.sft.warm_start import WarmStart
from heliostat.train.step_metrics import StepMetrics
from heliostat.train.trainer import Trainer
from heliostat.train.update.safe_step import SafeStep
from heliostat.train.update.updater import Updater
from heliostat.types import Problem


def build_trainer(context: RunContext) -> Trainer:
    """Build the trainer of a run: data, updater, guard, metrics, and the registry of their states.

    Raises:
        ConfigError: a part cannot be built as the recipe says, for example prefixes of an empty bank.
    """
    recipe, bundle, runtime = context.recipe, context.bundle, context.runtime
    counters = RunCounters()
    updater = make_updater(recipe, bundle, context.objective, runtime, context.teacher)
    curriculum = Curriculum(context.train_problems, recipe.run.seed, recipe.train.focus)
    prefixes = _open_prefixes(context)
    feedback = make_feedback(recipe, bundle, context.tasks[-1].train)
    heldout = HeldOut(context)
    guard = _build_guard(context, updater, curriculum)
    planner = RolloutPlanner(
        recipe=recipe,
        bundle=bundle,
        curriculum=curriculum,
        prefixes=prefixes,
        updater=updater,
        traces=context.traces,
        counters=counters,
        position=guard.position,
    )
    scheduler = RolloutScheduler(
        recipe, bundle, context.pool, runtime, context.ledger, planner.request, updater.anchor_from_sampler
    )
    parts = _state_parts(context, counters, heldout, guard, updater, curriculum, prefixes, feedback, scheduler)
    state = RunState(context.checkpoints, bundle.loaded.model, parts)
    progress = RunProgress(context=context, counters=counters, state=state, guard=guard, updater=updater)
    return Trainer(
        context=context,
        counters=counters,
        progress=progress,
        warm_start=WarmStart(context=context, progress=progress, heldout=heldout, feedback=feedback),
        planner=planner,
        scheduler=scheduler,
        updater=updater,
        metrics=StepMetrics(context=context, updater=updater, prefixes=prefixes, counters=counters),
        guard=guard,
        heldout=heldout,
    )


def _open_prefixes(context: RunContext) -> Prefixes:
    """Open the recipe's prefixes; charge their collection, and notify the user of damaged or useless traces."""
    with context.runtime.main_first():
        prefixes, sources = open_prefixes(
            context.recipe, context.folder.prefixes, context.bundle, list(context.tasks), context.pool
        )
    context.ledger.charge("collection", sources.flops)
    for sentence in sources.damaged:
        context.display.note(sentence)
    if sources.num_refused:
        context.display.note(
            f"{sources.num_refused} stored solutions have no part before their "
            f"{'last turn' if context.recipe.environment.enabled else 'answer'}, and are not used"
        )
    return prefixes


def _build_guard(context: RunContext, updater: Updater, curriculum: Curriculum) -> RunGuard:
    section = context.recipe.guard
    actuator = build_actuator(section.actuator, updater, curriculum)
    panel = panel_of(context, updater)
    guard = RunGuard(section, context.folder, context.display.note, context.runtime.is_main, actuator, panel)
    meaningless = meaningless_rules(context.recipe.judge, updater.uses_rewards)
    guard.absolute = AbsoluteMonitor([rule for rule in ABSOLUTE_RULES if rule.name not in meaningless])
    guard.absolute.settings = first_minute_settings(context.bundle, context.tasks)
    return guard


def meaningless_rules(judge: JudgeSection, uses_rewards: bool) -> frozenset[str]:
    """Return the rules whose sentences would be wrong about a run with this reward."""
    if not uses_rewards:
        return ABOUT_SIGNAL
    if not (judge.enabled and judge.alone):
        return frozenset()
    return OF_COMPARISONS if judge.mode == "pairwise" else ABOUT_SUCCESS


def _state_parts(
    context: RunContext,
    counters: RunCounters,
    heldout: HeldOut,
    guard: RunGuard,
    updater: Updater,
    curriculum: Curriculum,
    prefixes: Prefixes,
    feedback: Feedback,
    scheduler: RolloutScheduler,
) -> list[Part]:
    """List every part of the run's state; weights and optimizer aside, which each checkpoint has."""
    work = "counts the work of the run, which includes rolled-back steps"
    stays = "the rollback itself must not be undone: its position in the data, its count, its learning rate"
    seconds = Part("seconds", lambda: counters.elapsed_s, lambda value: setattr(counters, "seconds_before", value))
    return [
        surviving(attribute("num_tokens", counters, "num_tokens"), work),
        surviving(attribute("teacher_tokens", counters, "teacher_tokens"), work),
        surviving(seconds, work),
        surviving(stateful("ledger", context.ledger), work),
        surviving(stateful("before", heldout), "results of the weights before training, which do not change"),
        surviving(Part("guard", lambda: guard.state_dict(counters.step), guard.load_state_dict), stays),
        Part("judgement", guard.judgement, guard.load_judgement),
        attribute("num_bad_steps", counters, "num_bad_steps"),
        attribute("bad_in_a_row", updater.safe_step, "num_bad_in_a_row"),
        attribute("version", updater, "version"),
        stateful("curriculum", curriculum),
        stateful("prefixes", prefixes.policy),
        stateful("feedback", feedback),
        Part(
            ROLLOUTS,
            lambda: scheduler.state_dict(counters.step),
            lambda states: scheduler.load_state_dict(states, curriculum.problems),
            "dropped",
            "they belong to data that is skipped after the rollback, and to an abandoned policy",
            scheduler.discard,
        ),
    ]


def make_feedback(recipe: Recipe, bundle: ModelBundle, extra: Sequence[Problem]) -> Feedback:
    """Build the feedback on a statistic during supervised steps, with the policy that they train."""
    policy = Policy(
        bundle.loaded, temperature=1.0, shared_prompt=False, gradient_checkpointing=recipe.train.gradient_checkpointing
    )
    return Feedback(recipe.feedback, bundle.engine, policy, bundle.prompt, recipe.run.seed, extra)


def make_updater(
    recipe: Recipe, bundle: ModelBundle, objective: Objective, runtime: Runtime, teacher: Teacher | None = None
) -> Updater:
    """Build the updater of post-training: policy, objective, optimizer and learning-rate schedule."""
    num_updates = recipe.train.num_steps * recipe.train.updates_per_step
    optimizer = build_optimizer(recipe.optimizer, bundle.loaded.model)
    accumulate_in_float32(bundle.loaded.model.parameters())
    if isinstance(optimizer, BaseOptimizer) and optimizer.extra_pass == "scores":
        optimizer.process_group = ALONE  # every rank takes all scores, of the same completions
    moves_head = recipe.teacher.is_self and recipe.teacher.kind != "sampled"
    if moves_head and getattr(optimizer, "extra_pass", "none") == "reevaluation":
        raise ConfigError(
            f"optimizer '{recipe.optimizer.name}' evaluates the loss at other weights within an update, where a "
            "teacher that is the policy itself would move along; set teacher.kind = 'sampled'"
        )
    return Updater(
        policy=Policy(
            bundle.loaded,
            recipe.rollout.temperature,
            recipe.train.shared_prompt,
            gradient_checkpointing=recipe.train.gradient_checkpointing,
        ),
        objective=objective,
        safe_step=SafeStep(optimizer, recipe.optimizer.max_grad_norm, recipe.train.max_bad_steps),
        schedule=Schedule.from_section(recipe.optimizer, num_updates),
        runtime=runtime,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
        drop_zero_signal=recipe.train.drop_zero_signal,
        # In float32 the in-process sampler equals the trainer to 1e-5 (checked against the parity bound).
        anchor_from_sampler=recipe.rollout.engine == "torch" and bundle.numerics == torch.float32,
        reset_every=recipe.optimizer.reset_every,
        teacher=teacher,
        num_workers=recipe.gradient_workers,
    )

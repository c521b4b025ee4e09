"""The warm start: supervised steps before post-training, on worked solutions of the run's tasks.

Its steps are numbered ``1 - num_steps .. 0``, so that post-training begins at step 1. It ends early once the success
rate on held-out problems reaches ``warm_start.stop_at``.

Left out: the supervised update itself (``updater``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from heliostat.config import OptimizerSection
from heliostat.optim import Schedule, accumulate_in_float32, build_optimizer
from heliostat.rollout import completion_seed
from heliostat.train.data.curriculum import ShuffledEpochs
from heliostat.train.data.demonstrations import Demonstrations
from heliostat.train.data.episode_demonstrations import EpisodeDemonstrations
from heliostat.train.episodes import Environments
from heliostat.train.evaluation.heldout import HeldOut
from heliostat.train.run_context import RunContext
from heliostat.train.run_progress import RunProgress
from heliostat.train.sft.feedback import Feedback
from heliostat.train.sft.updater import SupervisedUpdater
from heliostat.train.update.safe_step import SafeStep


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStart:
    """The supervised steps of a run, each a function of its index and the seed."""

    context: RunContext
    progress: RunProgress
    heldout: HeldOut
    feedback: Feedback

    def run(self, resumed: int | None) -> None:
        """Take all supervised steps, or those after the checkpoint of step ``resumed``."""
        section, context = self.context.recipe.warm_start, self.context
        if section.num_steps == 0:
            return
        updater = self._updater()
        optimizer, done = updater.safe_step.optimizer, 0
        if resumed is not None:
            self.progress.restore(resumed, optimizer)
            done = resumed + section.num_steps
        context.display.begin_phase("warm start", section.num_steps, done=done)
        with self.progress.saved_on_interrupt(optimizer):
            for num_done, metrics in self._steps(updater, done):
                self._go_to(num_done - section.num_steps)
                if self._is_good_enough(num_done, metrics):
                    break
                if num_done % context.recipe.train.checkpoint_every == 0 and num_done < section.num_steps:
                    self.progress.save(optimizer)
                context.interrupt.check()
        self._go_to(0)
        context.display.end_phase()

    def _go_to(self, step: int) -> None:
        self.progress.counters.step = step

    def _updater(self) -> SupervisedUpdater:
        """Build the updater, whose optimizer ends with the warm start."""
        recipe, model = self.context.recipe, self.context.bundle.loaded.model
        section, train = recipe.warm_start, recipe.train
        optimizer: torch.optim.Optimizer = build_optimizer(OptimizerSection(name="adamw", lr=section.lr), model)
        accumulate_in_float32(model.parameters())
        warmup = min(20, section.num_steps)
        return SupervisedUpdater(
            policy=self.feedback.policy,
            safe_step=SafeStep(optimizer, recipe.optimizer.max_grad_norm, train.max_bad_steps),
            schedule=Schedule(section.lr, section.num_steps, "cosine", warmup, section.final_lr_ratio),
            runtime=self.context.runtime,
            tokens_per_microbatch=train.tokens_per_microbatch,
            num_workers=recipe.gradient_workers,
        )

    def _demonstrations(self) -> Demonstrations | EpisodeDemonstrations:
        """Return the demonstrations of the run's teachers, or of its environment's oracle."""
        context, recipe = self.context, self.context.recipe
        tasks = {task.name: task for task in context.tasks}
        own = Demonstrations(context.bundle.loaded, recipe.model, tasks, recipe.warm_start.num_steps, recipe.run.seed)
        if context.pool.environments is None:
            return own
        environments = Environments(pool=context.pool.environments, bundle=context.bundle, note=context.display.note)
        return EpisodeDemonstrations(own, environments)

    def _steps(self, updater: SupervisedUpdater, done: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Take the steps after the first ``done``; after each, yield the number of steps done and its metrics."""
        context, section, seed = self.context, self.context.recipe.warm_start, self.context.recipe.run.seed
        ledger, loaded, tasks = context.ledger, context.bundle.loaded, context.tasks
        demonstrations = self._demonstrations()
        kept = tasks[:-1] if context.recipe.feedback.mixes else tasks
        problems = [problem for task in kept for problem in task.train]
        stream = ShuffledEpochs(problems, completion_seed(seed, "warm start"))
        for index in range(done, section.num_steps):
            with ledger.phase("warm_start"):
                batch = stream.next(index, section.batch_size)
                feedback_metrics = self.feedback.measure(index, batch)
                rows = demonstrations.rows(index, self.feedback.mixed(index, batch))
                context.bundle.rest()
                metrics = feedback_metrics | updater.step(index, rows, self.feedback)
            ledger.charge_update("warm_start", loaded, updater.take_counts())
            ledger.charge_rollout("warm_start", loaded, context.bundle.engine.take_counts())
            yield index + 1, metrics

    def _is_good_enough(self, num_done: int, metrics: dict[str, float]) -> bool:
        """Log a step, evaluate it where due, and return whether the success rate has reached ``stop_at``."""
        section, step = self.context.recipe.warm_start, self.progress.counters.step
        due = section.stop_at < 1 and num_done % section.eval_every == 0 and num_done < section.num_steps
        if due:
            metrics = metrics | self.heldout.evaluate_subset(step)
        self.context.log(step, metrics)
        return due and metrics["eval/pass@1"] >= section.stop_at

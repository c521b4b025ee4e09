"""The training loop, on one screen, and the run around it: warm start, evaluation, training, evaluation.

    for step: prompts -> groups -> rewards -> targets -> gradient -> metrics -> guard -> log

Every draw is derived from the run's seed and the step, so a run that was killed continues from its last checkpoint bit
for bit (on a CPU, with the same number of threads). ``builders.build_trainer`` builds a trainer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from heliostat.monitors import evaluation_signals, standing_by_rule
from heliostat.rollout import ParityError
from heliostat.tracking import read_metrics
from heliostat.train.accounting.run_counters import RunCounters
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.evaluation.heldout import HeldOut
from heliostat.train.frozen_reference import frozen_reference
from heliostat.train.guard.run_guard import NUMERIC_FAILURES, GuardStopped, RunGuard
from heliostat.train.logprobs.teacher import TeacherFailed
from heliostat.train.model_card.card import build_cards
from heliostat.train.model_card.facts import CardFacts
from heliostat.train.rollouts.batch import Rollouts
from heliostat.train.rollouts.planner import RolloutPlanner
from heliostat.train.rollouts.scheduler import RolloutScheduler
from heliostat.train.run_context import RunContext
from heliostat.train.run_folder.export import export
from heliostat.train.run_progress import RunProgress
from heliostat.train.sft.warm_start import WarmStart
from heliostat.train.step_metrics import StepMetrics
from heliostat.train.update.updater import Updater

RECOVERABLE = (*NUMERIC_FAILURES, ParityError)
"""Errors of a step after which a rollback might help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """One run in progress."""

    context: RunContext
    counters: RunCounters
    progress: RunProgress
    warm_start: WarmStart
    planner: RolloutPlanner
    scheduler: RolloutScheduler
    updater: Updater
    metrics: StepMetrics
    guard: RunGuard
    heldout: HeldOut

    def run(self) -> tuple[Evaluation | None, Evaluation]:
        """Warm start, evaluate, train, evaluate, export.

        Returns:
            The held-out results before training, if they are still known, and after it.
        """
        self.counters.began = time.monotonic()
        recipe, resumed = self.context.recipe, self.progress.resume()
        untrained = resumed is None or resumed < 0
        supervised_alone = recipe.train.num_steps == 0
        if supervised_alone:  # compare with the model before the warm start
            before = self.heldout.measure_before(-recipe.warm_start.num_steps, untrained)
        if untrained:
            self.warm_start.run(resumed)
            self.progress.save()
        if not supervised_alone:
            before = self.heldout.measure_before(0, self.counters.step == 0)
            if before is not None and recipe.prefix.name == "none":  # prefixes begin where no problem is solved
                self.guard.see_failures(self.heldout.failures)
                self.guard.first_look(evaluation_signals(before.results))
        if self.context.objective.needs_reference:
            self.updater.reference = frozen_reference(self.context, self.counters.step)
        self.context.display.begin_phase("train", recipe.train.num_steps, done=self.counters.step)
        try:
            with self.scheduler, self.progress.saved_on_interrupt():
                self.train()
        except GuardStopped as stopped:
            self.evaluate_stopped(stopped)
            raise
        self.context.display.end_phase()
        after = self.heldout.measure_after(self.counters.step)
        self.save_model(before, after)
        return before, after

    def evaluate_stopped(self, stopped: GuardStopped) -> None:
        """Evaluate the weights at which the guard ended the run; they are not exported.

        Raises:
            GuardStopped: the weights are broken; the reason says that there is no evaluation.
        """
        step = self.counters.step
        try:
            self.heldout.measure_after(step)
        except NUMERIC_FAILURES as error:
            raise GuardStopped(f"{stopped}; the weights of step {step} cannot be evaluated: {error}") from error

    def save_model(self, before: Evaluation | None, after: Evaluation) -> None:
        """Export the trained model together with its card."""
        context, folder = self.context, self.context.folder
        facts = CardFacts(
            recipe=context.recipe,
            before=before,
            after=after,
            findings=tuple(standing_by_rule(read_metrics(folder.events))) if context.runtime.is_main else (),
            is_chat=context.uses_chat(),
            dtype=str(context.bundle.loaded.model.dtype).removeprefix("torch."),
        )
        prompts, cards = context.export_prompts(), build_cards(facts)
        export(context.bundle.loaded, context.runtime, folder.model, prompts, folder.adapter, cards)

    def train(self) -> None:
        """Post-train until the last step, and roll back if the guard asks for it."""
        for step in self.progress.steps():
            try:
                with self.context.ledger.step():
                    metrics = self.step(step)
                if self.progress.is_saved(step):
                    self.scheduler.wait_pending(step)
                metrics |= self.guard.observe(step, metrics)
                self.updater.lr_scale = self.guard.step_scale
            except RECOVERABLE as error:
                if not self.guard.should_roll_back(step, error):
                    raise
            else:
                self.counters.step = step
                self.context.log(step, metrics | self.heldout.evaluate_if_due(step))
            if self.guard.pending_rollback:
                self.progress.roll_back(step)
            elif self.progress.is_saved(step):
                self.progress.save()

    def step(self, step: int) -> dict[str, float]:
        """Run one step, which every other module of the project serves, and return its metrics."""
        started = time.monotonic()
        rollouts = self.scheduler.next(step)  # planned, sampled and verified by all ranks
        self.context.interrupt.check()  # no state has changed since the last step, so stopping here loses no work
        self.ask_teacher(rollouts)  # nor does a teacher's server that fails here
        self.record(rollouts)
        self.context.bundle.rest()
        anchors = rollouts.anchors(self.updater.version)
        batch = self.updater.make_batch(rollouts.groups, anchors)
        with self.context.ledger.phase("update"):
            updates = self.context.recipe.train.updates_per_step
            report = self.updater.run(batch, updates, (step - 1) * updates, self.planner.seed(step))
            if anchors is not None:  # sampler and trainer were compared under the weights that sampled
                report = replace(report, max_sampler_gap=rollouts.max_gap, mismatch=rollouts.mismatch)
            signals = self.metrics.signals(batch, report) | self.metrics.episodes(rollouts.counts)
            signals |= self.metrics.judge(rollouts) | self.metrics.teacher()
        self.metrics.charge_update(rollouts.groups, report)
        return self.context.runtime.broadcast(signals | self.metrics.speed(rollouts, time.monotonic() - started))

    def ask_teacher(self, rollouts: Rollouts) -> None:
        """Let a teacher on a server read the step's completions; one in this process reads them in the update.

        Raises:
            TeacherFailed: the server cannot be used; the last complete step is saved.
        """
        teacher = self.context.teacher
        if teacher is None or teacher.loaded is not None:
            return
        try:
            with self.context.ledger.phase("teacher"):
                teacher.prepare(rollouts.groups, self.context.runtime)
        except TeacherFailed:
            self.progress.save()
            raise

    def record(self, rollouts: Rollouts) -> None:
        """Update success rates, the guard and the accounts with verified rollouts."""
        self.planner.update(rollouts.groups)
        self.guard.see_failures(verdict.failure for group in rollouts.groups for verdict in group.verdicts)
        self.metrics.charge_rollouts(rollouts)

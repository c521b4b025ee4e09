"""The training loop, on one screen, and the run around it: warm start, before, train, after.

    for step: prompts -> groups -> rewards -> targets -> gradient -> signals -> log

Every draw is derived from the run's seed and the step, so a run that was killed continues from its last checkpoint bit
for bit (on a CPU, with the same number of threads).

Left out: everything that has a room of its own; this file only says in which order they act.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from heliostat.config import Recipe
from heliostat.monitors import evaluation_signals
from heliostat.monitors.mismatch import Mismatch
from heliostat.objectives import Objective
from heliostat.optim import forget_moments
from heliostat.rollout import PARITY_BOUNDS, ParityError, SamplingSettings, completion_seed
from heliostat.storage import write_manifest
from heliostat.tasks import Task, VerifierPool
from heliostat.tracking import Tracker
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.builders import make_feedback, make_updater
from heliostat.train.console.interrupt import Interrupted, InterruptGuard
from heliostat.train.console.progress import Display
from heliostat.train.data.curriculum import Curriculum
from heliostat.train.data.prefixes import open_prefixes
from heliostat.train.data.trace_log import TraceLog
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.evaluation.heldout import HeldOut
from heliostat.train.guard.actuators import build_actuator
from heliostat.train.guard.first_minute import first_minute_settings
from heliostat.train.guard.panel import Panel
from heliostat.train.guard.run_guard import NUMERIC_FAILURES, RunGuard
from heliostat.train.guard.signals import make_monitor
from heliostat.train.model_bundle import Bench, load_reference
from heliostat.train.rollouts.batch import Order, Rollouts
from heliostat.train.rollouts.scheduler import Ahead
from heliostat.train.run_folder.checkpoints import Checkpoints
from heliostat.train.run_folder.export import NUM_PROMPTS, export
from heliostat.train.run_folder.folder import RunFolder
from heliostat.train.run_folder.reference import reference_is_intact
from heliostat.train.run_state import ROLLOUTS, Part, RunState, attribute, stateful, surviving
from heliostat.train.sft.warm_start import WarmStart
from heliostat.train.update.mirror_metrics import mirror_means, rollout_means, sequence_log_ratios
from heliostat.train.update.updater import UpdateReport
from heliostat.types import Batch, Group, Prompt

NUM_DIAGNOSTIC_GROUPS = 8
"""Groups re-scored after each phase for the mirror-step numbers."""


RESCUABLE = (*NUMERIC_FAILURES, ParityError)
"""What a step may end in that going back to a checkpoint might help."""


@dataclass
class Trainer:
    """One run in progress; ``train.run`` builds it."""

    recipe: Recipe
    folder: RunFolder
    checkpoints: Checkpoints
    runtime: Runtime
    tasks: list[Task]
    bench: Bench
    objective: Objective
    pool: VerifierPool
    trackers: list[Tracker]
    display: Display
    interrupt: InterruptGuard
    ledger: Ledger
    traces: TraceLog
    step: int = 0
    num_tokens: int = 0
    num_bad_steps: int = 0
    seconds_before: float = 0.0
    began: float = 0.0

    def __post_init__(self) -> None:
        self.updater = make_updater(self.recipe, self.bench, self.objective, self.runtime)
        problems = [problem for task in self.tasks for problem in task.train]
        self.curriculum = Curriculum(problems, self.recipe.run.seed, self.recipe.train.focus)
        with self.runtime.main_first():
            self.prefixes, donors = open_prefixes(self.recipe, self.folder.prefixes, self.bench, self.tasks, self.pool)
        self.ledger.charge("collection", donors.flops)
        for sentence in donors.damaged:
            self.display.note(sentence)
        if donors.num_refused:
            self.display.note(f"{donors.num_refused} stored solutions give nothing but their answer, and are not cut")
        self.feedback = make_feedback(self.recipe, self.bench, self.tasks[-1].train)
        self.heldout = HeldOut(
            self.recipe,
            self.folder,
            self.bench,
            self.pool,
            self.runtime,
            self.ledger,
            self.display.note,
            [problem for task in self.tasks for problem in task.heldout],
        )
        self.monitor = make_monitor(self.tasks, self.bench.loaded)
        section = self.recipe.guard
        actuator = build_actuator(section.actuator, self.updater, self.curriculum)
        self.ahead = Ahead(
            self.recipe,
            self.bench,
            self.pool,
            self.runtime,
            self.ledger,
            self._order,
            self.updater.anchor_from_sampler,
        )
        self.guard = RunGuard(
            section, self.folder, self.display.note, self.runtime.is_main, actuator, self._make_panel()
        )
        self.guard.outright.settings = first_minute_settings(self.bench, self.tasks)
        self.state = RunState(self.checkpoints, self.bench.loaded.model, self._parts())

    def run(self) -> tuple[Evaluation | None, Evaluation]:
        """Warm start, evaluate, train, evaluate; returns held-out results before (if still known) and after."""
        self.began = time.monotonic()
        resumed = self._resume()
        untrained = resumed is None or resumed < 0
        supervised_alone = self.recipe.train.num_steps == 0
        if supervised_alone:  # compared with what came before the warm start
            before = self.heldout.measure_before(-self.recipe.warm_start.num_steps, untrained)
        if untrained:
            self._warm_start(resumed)
            self._save(self.updater.guarded.optimizer)
        if not supervised_alone:
            before = self.heldout.measure_before(0, self.step == 0)
            if before is not None and self.recipe.prefix.name == "none":  # prefixes begin where nothing is solved
                self.guard.see_failures(self.heldout.failures)
                self.guard.first_look(evaluation_signals(before.results))
        self._freeze_reference()
        self._train()
        after = self.heldout.measure_after(self.step)
        export(self.bench.loaded, self.runtime, self.folder.model, self._shown_prompts(), self.folder.adapter)
        return before, after

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        train = self.recipe.train
        self.display.begin_phase("train", train.num_steps, done=self.step)
        with self.ahead, self._saved_when_interrupted(self.updater.guarded.optimizer):
            while self.step < train.num_steps:
                step = self.step + 1
                saves = step % train.checkpoint_every == 0 or step == train.num_steps
                try:
                    with self.ledger.step():
                        values = self._step(step)
                    if saves:
                        self.ahead.settle(step)
                    values |= self.guard.act(step, values)
                    self.updater.lr_scale = self.guard.step_scale
                except RESCUABLE as error:
                    if not self.guard.rescue(step, error):
                        raise
                    self._go_back(step)
                    continue
                self.step = step
                if self.recipe.eval.every and step % self.recipe.eval.every == 0 and step < train.num_steps:
                    values |= self.heldout.look(self.step)
                self._log(step, values)
                if self.guard.order:
                    self._go_back(step)
                    continue
                if saves:
                    self._save(self.updater.guarded.optimizer)
        self.display.end_phase()

    def _step(self, step: int) -> dict[str, float]:
        """One step: what every other part of the project serves."""
        train = self.recipe.train
        seed = completion_seed(self.recipe.run.seed, "step", step + self.guard.skipped)
        started = time.monotonic()

        rollouts = self.ahead.next(step)  # sampled and judged as ordered, by all ranks; every rank knows them all
        groups = rollouts.groups
        self.interrupt.check()  # everything is still as the last step left it: nothing is lost by stopping here
        self.curriculum.learn(groups)
        self.prefixes.learn(groups)
        self.guard.see_failures(verdict.failure for group in groups for verdict in group.verdicts)
        self._keep(rollouts)
        anchors = rollouts.anchors(self.updater.version)
        batch = self.updater.make_batch(groups, anchors)
        with self.ledger.phase("update"):
            self._forget_optimizer(step)
            report = self.updater.run(batch, train.updates_per_step, (step - 1) * train.updates_per_step, seed)
            if anchors is not None:  # sampler and trainer were compared while the policy still was the anchor
                report = replace(report, max_sampler_gap=rollouts.max_gap, mismatch=rollouts.mismatch)
            signals = self._signals(batch, report)
        self._account(groups, report)
        return self.runtime.from_main(signals | self._speed(rollouts, time.monotonic() - started))

    def _order(self, step: int) -> Order:
        """What a step is to sample: with the weights of now, of problems that suit what is known now."""
        position = step + self.guard.skipped  # in the data: steps that were taken back are not made again
        problems = self.curriculum.next(position - 1, self.recipe.rollout.prompts_per_step - self.prefixes.per_step)
        prompts = [self.bench.prompt(problem) for problem in problems] + self.prefixes.next(position - 1)
        return Order(
            step,
            prompts,
            SamplingSettings(temperature=self.updater.policy.temperature),
            seed=completion_seed(self.recipe.run.seed, "step", position),
            policy_step=self.step,
            version=self.updater.version,
            sources=self.traces.sources(self.step),
        )

    def _signals(self, batch: Batch, report: UpdateReport) -> dict[str, float]:
        groups = [group.group for group in batch.groups]
        sampler_gap = self._checked_sampler_gap(report)
        num_groups = min(NUM_DIAGNOSTIC_GROUPS, -(-len(groups) // 8))  # another forward: an eighth of the batch at most
        budget = self.recipe.train.tokens_per_microbatch
        scored = sequence_log_ratios(self.updater.policy, batch, num_groups, budget, self.runtime)
        mirror = mirror_means(*scored, tau=self.updater.objective.regression_tau)
        means = {**rollout_means(groups), **self.prefixes.means(groups), **report.means, **mirror}
        self.num_bad_steps += report.bad_steps
        numbers = {key: mean.value for key, mean in means.items() if mean.count}
        numbers |= self.monitor.finish(self.monitor.measure(batch))
        numbers |= Mismatch().finish(report.mismatch)
        numbers |= self.updater.probe.finish(report.moved)
        return numbers | {
            **sampler_gap,
            "policy/max_log_ratio": float(abs(scored[0]).max(initial=0.0)),
            "length/max": float(max(len(c.token_ids) for group in groups for c in group.completions)),
            "optim/lr": report.lr,
            "optim/bad_steps": float(self.num_bad_steps),
        }

    def _checked_sampler_gap(self, report: UpdateReport) -> dict[str, float]:
        """The parity probe: sampler against trainer on every token that was scored before the weights moved."""
        gap = report.max_sampler_gap
        if gap is None:
            return {}
        bound = self.recipe.rollout.max_parity_gap or PARITY_BOUNDS[self.bench.numerics]
        if gap > bound:
            raise ParityError(
                f"sampler and trainer differ by {gap:.2g} nats on a token, more than the bound of {bound:g} "
                "(rollout.max_parity_gap): the sampler's weights or numerics are not the trainer's"
            )
        return {"policy/sampler_gap": gap}

    def _freeze_reference(self) -> None:
        """Keep the policy that training starts from, where the objective compares with it."""
        if not self.objective.needs_reference:
            return
        if not self.runtime.led(lambda: reference_is_intact(self.folder.reference, self.step)):
            export(self.bench.loaded, self.runtime, self.folder.reference, self._shown_prompts())
            self.runtime.led(lambda: write_manifest(self.folder.reference, {"step": self.step}))
        dtype = self.bench.loaded.model.dtype
        self.updater.reference = load_reference(self.recipe, self.folder.reference, self.runtime, dtype)

    def _shown_prompts(self) -> list[Prompt]:
        """Prompts on which a saved model is compared with the one in memory."""
        return [self.bench.prompt(problem) for problem in self.heldout.problems[:NUM_PROMPTS]]

    def _forget_optimizer(self, step: int) -> None:
        every = self.recipe.optimizer.reset_every
        if every and (step - 1) % every == 0:
            forget_moments(self.updater.guarded.optimizer)

    def _keep(self, rollouts: Rollouts) -> None:
        """Charge what sampling took, and put the rollouts into the bank."""
        before = self.ledger.flops["rollout"]
        self.ledger.charge_rollout("rollout", self.bench.loaded, rollouts.counts)
        self.ledger.charge_update("update", self.bench.loaded, rollouts.scored, with_gradient=False)
        self.ledger.see_ahead(rollouts.seconds, rollouts.spans)
        self.traces.add(rollouts.groups, rollouts.sources, self.ledger.flops["rollout"] - before)

    # -- accounting -------------------------------------------------------------------------------------------------

    def _account(self, groups: list[Group], report: UpdateReport) -> None:
        self.num_tokens += sum(group.num_tokens for group in groups)
        self.ledger.charge_update("update", self.bench.loaded, report.counts)
        self.ledger.charge_update("update", self.bench.loaded, report.scored, with_gradient=False)

    def _speed(self, rollouts: Rollouts, seconds: float) -> dict[str, float]:
        tokens = sum(group.num_tokens for group in rollouts.groups)
        last, ahead = self.ledger.last_seconds, {}
        if self.recipe.rollout.max_staleness:
            ahead = {"time/ahead": rollouts.seconds, "policy/staleness_steps": float(self.step - rollouts.policy_step)}
        return ahead | {
            "time/rollout": last["rollout"],
            "time/verify": last["verify"],
            "time/update": last["update"],
            "time/total": self.elapsed_s,
            "speed/rollout_tokens": tokens / max(rollouts.seconds or last["rollout"], 1e-9),
            "speed/step_tokens": tokens / max(seconds, 1e-9),
            "compute/rollout_flops": self.ledger.flops["rollout"],
            "compute/update_flops": self.ledger.flops["update"],
            "compute/collection_flops": self.ledger.flops["collection"],
            "compute/total_flops": self.ledger.spent,
            "compute/unshared_flops": self.ledger.spent_unshared,
            "compute/tokens": float(self.num_tokens),
        }

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of the run so far, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.began

    def _log(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)
        self.display.step(step if step > 0 else step + self.recipe.warm_start.num_steps, values)

    # -- guard ------------------------------------------------------------------------------------------------------

    def _make_panel(self) -> Callable[[], dict[str, float]]:
        section = self.recipe.guard
        panel = Panel(
            [self.bench.prompt(problem) for problem in self.heldout.problems[: section.panel_problems]],
            section.panel_samples,
            self.recipe.rollout.temperature,
            completion_seed(self.recipe.run.seed, "panel"),
            self.recipe.train.tokens_per_microbatch,
        )

        def measure() -> dict[str, float]:
            with self.ledger.phase("eval"):
                numbers = panel.measure(self.bench.engine, self.pool, self.updater.policy, self.runtime)
            self.ledger.charge_sampling("eval", self.bench.loaded, self.bench.engine, self.runtime)
            return numbers

        return measure

    def _go_back(self, step: int) -> None:
        """Continue from an earlier checkpoint with other data and half the step, as the guard ordered."""
        to = self.guard.destination(step, self.checkpoints.intact())
        optimizer = self.updater.guarded.optimizer
        self.state.roll_back(to, optimizer)
        self.guard.went_back(step, to, self.folder.metrics_after(to))
        self.updater.lr_scale = self.guard.step_scale
        self.step = to
        self._save(optimizer)  # until here a killed run would come to this rollback once more, and find all its files
        self.folder.forget_after(to)
        for tracker in self.trackers:
            tracker.rewind(to)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    @contextmanager
    def _saved_when_interrupted(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Keep the last complete step of a run that the user stops."""
        try:
            yield
        except Interrupted:
            self._save(optimizer)
            raise

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        self.state.save(self.step, optimizer, self.folder.extents(self.step))

    def _parts(self) -> list[Part]:
        """Every part of the run's state; weights and optimizer aside, which each checkpoint has."""
        work = "counts what the run took, and steps that were taken back took it too"
        stays = "a run that goes back must know that it did: its place in the data, its tries, its learning rate"
        seconds = Part("seconds", lambda: self.elapsed_s, lambda value: setattr(self, "seconds_before", value))
        return [
            surviving(attribute("num_tokens", self, "num_tokens"), work),
            surviving(seconds, work),
            surviving(stateful("ledger", self.ledger), work),
            surviving(stateful("before", self.heldout), "of the weights that training began with, once and for all"),
            surviving(Part("guard", lambda: self.guard.state_dict(self.step), self.guard.load_state_dict), stays),
            Part("judgement", self.guard.judgement, self.guard.load_judgement),
            attribute("num_bad_steps", self, "num_bad_steps"),
            attribute("bad_in_a_row", self.updater.guarded, "num_bad_in_a_row"),
            attribute("version", self.updater, "version"),
            stateful("curriculum", self.curriculum),
            stateful("prefixes", self.prefixes.policy),
            stateful("feedback", self.feedback),
            Part(
                ROLLOUTS,
                lambda: self.ahead.state_dict(self.step),
                lambda states: self.ahead.load_state_dict(states, self.curriculum.problems),
                "dropped",
                "they are of the data that the run does not come back to, and of a policy that it gives up",
                self.ahead.drop,
            ),
        ]

    def _resume(self) -> int | None:
        """Continue from the newest checkpoint; ``None`` where there is none."""
        step = self.checkpoints.latest
        if step is not None and step >= 0:
            self._restore(step, self.updater.guarded.optimizer)
            self.step = step
            self.display.note(f"resuming {self.folder.path} from step {step}")
        return step

    def _restore(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self.state.resume(step, optimizer)
        self.updater.lr_scale = self.guard.step_scale

    # -- warm start -------------------------------------------------------------------------------------------------

    def _warm_start(self, resumed: int | None) -> None:
        """Supervised steps on worked solutions, numbered ``1 - num_steps .. 0`` so that training begins at 1."""
        section = self.recipe.warm_start
        if section.num_steps == 0:
            return
        warm = WarmStart(self.recipe, self.bench, self.tasks, self.feedback, self.ledger, self.runtime)
        done = 0
        if resumed is not None:
            self._restore(resumed, warm.optimizer)
            done = resumed + section.num_steps
        self.display.begin_phase("warm start", section.num_steps, done=done)
        with self._saved_when_interrupted(warm.optimizer):
            for num_done, values in warm.steps(done):
                self.step = num_done - section.num_steps
                if self._good_enough(num_done, values):
                    break
                if num_done % self.recipe.train.checkpoint_every == 0 and self.step < 0:
                    self._save(warm.optimizer)
                self.interrupt.check()
        self.step = 0
        self.display.end_phase()

    def _good_enough(self, num_done: int, values: dict[str, float]) -> bool:
        """Log a warm-start step, after a look at the held-out problems when it is time for one."""
        section = self.recipe.warm_start
        check = section.stop_at < 1 and num_done % section.eval_every == 0 and num_done < section.num_steps
        if check:
            values = values | self.heldout.look(self.step)
        self._log(self.step, values)
        return check and values["eval/pass@1"] >= section.stop_at

"""The metrics of one training step: signals for the guard, speed, and compute.

Every logged key comes from here, except those of evaluations (``evaluation``) and of the guard (``guard.run_guard``).

Left out: the formulas of the signals (``monitors``, ``update.mirror_metrics``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float

from heliostat.models import decode_to_stop
from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.signal import Moments, Monitor, merge
from heliostat.monitors.turns import log_ratios, sampler_gap_metrics
from heliostat.rollout import PARITY_BOUNDS, ParityError, RolloutCounts
from heliostat.train.accounting.run_counters import RunCounters
from heliostat.train.data.prefixes import Prefixes
from heliostat.train.guard.signals import make_monitor
from heliostat.train.logprobs.packing import Row
from heliostat.train.rollouts.batch import Rollouts
from heliostat.train.run_context import RunContext
from heliostat.train.update.mirror_metrics import judge_means, mirror_means, rollout_means, sequence_log_ratios
from heliostat.train.update.updater import Updater, UpdateReport
from heliostat.types import Batch, Group, Mean, mean_values

NUM_DIAGNOSTIC_GROUPS = 8
"""Groups scored again after each update for the metrics of the mirror step."""


@dataclass(kw_only=True, slots=True)
class StepMetrics:
    """Measurement of steps, and accounting of their work in the run's ledger and counters."""

    context: RunContext
    updater: Updater
    prefixes: Prefixes
    counters: RunCounters
    monitor: Monitor = field(init=False)

    def __post_init__(self) -> None:
        loaded, stop = self.context.bundle.loaded, self.context.recipe.rollout.stop
        action = partial(decode_to_stop, loaded, stop=stop) if self.context.recipe.environment.enabled else None
        self.monitor = make_monitor(self.context.tasks, loaded, action)

    def charge_rollouts(self, rollouts: Rollouts) -> None:
        """Charge the FLOPs of sampling to the ledger, and store the rollouts in the recipe's trace bank."""
        ledger, loaded = self.context.ledger, self.context.bundle.loaded
        before = ledger.flops["rollout"]
        ledger.charge_rollout("rollout", loaded, rollouts.counts)
        ledger.charge_update("update", loaded, rollouts.scored, with_gradient=False)
        ledger.record_async_sampling(rollouts.seconds, rollouts.spans)
        ledger.charge("judge", rollouts.judged.flops)
        self.context.traces.add(rollouts.groups, rollouts.sources, ledger.flops["rollout"] - before)

    def charge_update(self, groups: Sequence[Group], report: UpdateReport) -> None:
        """Charge the FLOPs of an update to the ledger, and count its tokens."""
        self.counters.num_tokens += sum(group.num_tokens for group in groups)
        teacher = self.updater.teacher
        self.context.ledger.charge_phase(
            self.context.bundle.loaded, report, None if teacher is None else teacher.loaded
        )

    def signals(self, batch: Batch, report: UpdateReport) -> dict[str, float]:
        """Measure a finished update.

        Raises:
            ParityError: sampler and trainer disagree on the same tokens.
        """
        groups = [group.group for group in batch.groups]
        sampler_gap = self._checked_sampler_gap(report)
        num_groups = min(NUM_DIAGNOSTIC_GROUPS, -(-len(groups) // 8))  # another forward: an eighth of the batch at most
        budget = self.context.recipe.train.tokens_per_microbatch
        by_turn: list[Moments] = []

        def on_row(row: Row, log_ratio: Float[np.ndarray, " token"]) -> None:
            by_turn.append(log_ratios((row.prompt, row.completion), log_ratio))

        runtime, has_turns = self.context.runtime, self.context.recipe.environment.enabled
        watch = on_row if has_turns else None
        scored = sequence_log_ratios(self.updater.policy, batch, num_groups, budget, runtime, watch)
        mirror = mirror_means(*scored, tau=self.updater.objective.regression_tau)
        means = {**rollout_means(groups), **self.prefixes.means(groups), **report.means, **mirror}
        self.counters.num_bad_steps += report.bad_steps
        metrics = mean_values(means)
        metrics |= self.monitor.finish(self.monitor.measure(batch))
        metrics |= Mismatch().finish(report.mismatch)
        if has_turns:
            metrics |= mean_values(runtime.merge(merge(by_turn))) | sampler_gap_metrics(report.mismatch)
        metrics |= self.updater.probe.finish(report.moved)
        return metrics | {
            **sampler_gap,
            "policy/max_log_ratio": float(abs(scored[0]).max(initial=0.0)),
            "length/max": float(max(c.num_sampled for group in groups for c in group.completions)),
            "optim/lr": report.lr,
            "optim/bad_steps": float(self.counters.num_bad_steps),
        }

    def judge(self, rollouts: Rollouts) -> dict[str, float]:
        """Return the judge's scores of the step; empty without a judge."""
        if self.context.pool.judging is None:
            return {}
        counts = rollouts.judged
        metrics = mean_values(judge_means(rollouts.groups)) | {"judge/unscored": counts.unscored / max(1, counts.texts)}
        if not self.context.recipe.judge.url:
            return metrics
        asked = {"calls": counts.calls, "cached": counts.cached, "failed": counts.failed, "tokens": counts.tokens}
        return metrics | {f"judge/{name}": float(num) for name, num in asked.items()} | {"judge/cost": counts.cost}

    def teacher(self) -> dict[str, float]:
        """Count the requests to a teacher's server since the last call; empty without one."""
        teacher = self.updater.teacher
        if teacher is None or teacher.loaded is not None:
            return {}
        counts = self.context.runtime.sum(teacher.take_counts()._asdict())
        self.counters.teacher_tokens += int(counts["tokens"])
        return {f"teacher/{name}": float(count) for name, count in counts.items()}

    def episodes(self, counts: RolloutCounts) -> dict[str, float]:
        """Return the share of episodes that could not be scored, and the refused replays; empty without episodes."""
        if not counts.episodes:
            return {}
        failed = Mean(counts.failed_episodes, counts.episodes)
        return {"agent/failed": failed.value, "agent/refused_replays": float(counts.refused_replays)}

    def speed(self, rollouts: Rollouts, seconds: float) -> dict[str, float]:
        """Return the step's times, rates and cumulative compute.

        Args:
            seconds: wall seconds of the step.
        """
        ledger, counters = self.context.ledger, self.counters
        tokens = sum(group.num_tokens for group in rollouts.groups)
        last, ahead = ledger.last_seconds, {}
        if self.context.recipe.rollout.max_staleness:
            ahead = {
                "time/ahead": rollouts.seconds,
                "policy/staleness_steps": float(counters.step - rollouts.policy_step),
            }
        taught = {}
        if self.updater.teacher is not None and self.updater.teacher.loaded is not None:
            taught = {"compute/teacher_flops": ledger.flops["teacher"]}
        elif self.updater.teacher is not None:
            taught = {"compute/teacher_tokens": float(counters.teacher_tokens), "time/teacher": last["teacher"]}
        judged = {"compute/judge_flops": ledger.flops["judge"]} if ledger.flops["judge"] else {}
        return (
            ahead
            | taught
            | judged
            | {
                "time/rollout": last["rollout"],
                "time/verify": last["verify"],
                "time/update": last["update"],
                "time/total": counters.elapsed_s,
                "speed/rollout_tokens": tokens / max(rollouts.seconds or last["rollout"], 1e-9),
                "speed/step_tokens": tokens / max(seconds, 1e-9),
                "compute/rollout_flops": ledger.flops["rollout"],
                "compute/update_flops": ledger.flops["update"],
                "compute/collection_flops": ledger.flops["collection"],
                "compute/total_flops": ledger.spent,
                "compute/unshared_flops": ledger.spent_unshared,
                "compute/tokens": float(counters.num_tokens),
            }
        )

    @property
    def parity_bound(self) -> float:
        """The largest accepted gap between sampler and trainer in nats: the recipe's, or that of the dtype."""
        return self.context.recipe.rollout.max_parity_gap or PARITY_BOUNDS[self.context.bundle.numerics]

    def _checked_sampler_gap(self, report: UpdateReport) -> dict[str, float]:
        """Compare sampler and trainer on every token that was scored before the weights moved."""
        gap = report.max_sampler_gap
        if gap is None:
            return {}
        bound = self.parity_bound
        if gap > bound:
            raise ParityError(
                f"sampler and trainer differ by {gap:.2g} nats on a token, more than the bound of {bound:g} "
                "(rollout.max_parity_gap): their weights or numerics differ"
            )
        return {"policy/sampler_gap": gap}

"""The update phase: optimizer steps on a verified batch.

    groups -> advantages -> minibatches -> (log-probs -> loss -> backward) per micro-batch -> clip -> optimizer step

The anchor ``logp_old`` stays fixed over all updates of the phase: the policy at its start, or, if the batch has its own
anchor, the earlier policy that sampled it. Normalisation is global over each optimizer step. A step whose loss or
gradient is not finite is skipped and counted, and leaves the weights unchanged.

Left out: sampling of the groups, and their metrics (``mirror_metrics``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from heliostat.cards import Card
from heliostat.monitors.head_gradient import head_gradient
from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.signal import merge
from heliostat.monitors.turns import sampler_gaps
from heliostat.monitors.weights import WeightProbe
from heliostat.objectives import Objective
from heliostat.objectives.covariance import CovarianceClip
from heliostat.optim import Schedule, forget_moments
from heliostat.spans import span
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import Row, microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import Anchor, sampler_anchor, score
from heliostat.train.logprobs.teacher import Read, Teacher
from heliostat.train.update.counts import UpdateCounts
from heliostat.train.update.gradient_workers import GradientWorkers
from heliostat.train.update.optimizer_passes import ExtraPass
from heliostat.train.update.rank_sync import RankSync
from heliostat.train.update.safe_step import SafeStep
from heliostat.train.update.step_loss import StepLoss
from heliostat.types import Batch, Group, Mean, TokenBatch, TrainingGroup


@dataclass(frozen=True, slots=True)
class GradientPass:
    """Results of the forward and backward pass of one micro-batch.

    Attributes:
        rows: its rows with their anchor filled in.
        loss: its share of the step's loss.
        metrics: of the objective.
        sampler_gap, mismatch: as in ``UpdateReport``, of a pass at the anchor.
    """

    rows: list[Row]
    loss: float
    metrics: Mapping[str, Mean]
    sampler_gap: float | None
    mismatch: dict[str, Mean]


@dataclass(slots=True, repr=False)
class UpdateReport(Card):
    """Results of one update phase.

    Attributes:
        max_sampler_gap: largest ``|logp_gen - logp_new|`` on a token at the anchor; ``None`` if no token was compared.
        counts, scored: counts of the passes with gradients, and of the passes that only score (an anchor, a reference).
        taught: counts of the passes of a teacher.
        mismatch: moments of sampler against trainer on the tokens of the first update (``monitors.mismatch``), and of
            trajectories by turn (``monitors.turns``).
        moved: moments of the change of the weights (``monitors.weights``).
    """

    means: dict[str, Mean] = field(default_factory=dict)
    counts: UpdateCounts = field(default_factory=UpdateCounts)
    scored: UpdateCounts = field(default_factory=UpdateCounts)
    taught: UpdateCounts = field(default_factory=UpdateCounts)
    bad_steps: int = 0
    max_sampler_gap: float | None = None
    mismatch: dict[str, Mean] = field(default_factory=Mismatch().empty)
    moved: dict[str, Mean] = field(default_factory=dict)
    lr: float = 0.0

    def add(self, key: str, mean: Mean) -> None:
        self.means[key] = self.means[key] + mean if key in self.means else mean

    def add_pass(self, done: GradientPass, shared_prompt: bool) -> None:
        """Add the results of one micro-batch; whether prompts were shared decides what it counts as computed."""
        self.counts.add(done.rows, shared_prompt)
        for key, mean in done.metrics.items():
            self.add(key, mean)
        if done.sampler_gap is not None:
            self.max_sampler_gap = max(self.max_sampler_gap or 0.0, done.sampler_gap)
            self.mismatch = merge([self.mismatch, done.mismatch])

    def over_ranks(self, runtime: Runtime) -> UpdateReport:
        """Combine the reports of all ranks; ``bad_steps`` and ``lr`` are the same on each."""
        gaps = [gap for gap in runtime.gather(self.max_sampler_gap) if gap is not None]
        return dataclasses.replace(
            self,
            means=runtime.merge(self.means),
            counts=self.counts.over_ranks(runtime),
            scored=self.scored.over_ranks(runtime),
            taught=self.taught.over_ranks(runtime),
            max_sampler_gap=max(gaps, default=None),
            mismatch=runtime.merge(self.mismatch),
            moved=runtime.merge(self.moved),
        )


def make_batch(
    objective: Objective,
    groups: Sequence[Group],
    entropy_bonus: float = 0.0,
    variety_bonus: float = 0.0,
    uses_rewards: bool = True,
) -> Batch:
    """Turn each group's rewards into the objective's advantages.

    Args:
        entropy_bonus: adds ``-entropy_bonus log pi_gen(y)`` to the reward of completion ``y`` here; reported rewards
            do not include it.
        variety_bonus: adds ``-variety_bonus log pi_gen(y)`` likewise, but only to successful completions. Rare
            correct answers gain reward, and new wrong answers do not.
        uses_rewards: ``False`` sets all advantages to 0.

    **Limits** At the anchor, for advantages that are the reward minus a mean, the bonus adds ``entropy_bonus`` times
    the gradient of the entropy of whole completions, in expectation.
    """

    def targets(group: Group) -> torch.Tensor:
        rewards = torch.tensor(group.rewards, dtype=torch.float32)
        if not uses_rewards:
            return torch.zeros_like(rewards)
        if entropy_bonus or variety_bonus:
            surprise = [-float(completion.logp_gen.sum(dtype=np.float64)) for completion in group.completions]
            weight = [entropy_bonus + variety_bonus * verdict.success for verdict in group.verdicts]
            rewards = rewards + torch.tensor(weight) * torch.tensor(surprise)
        return objective.advantages(rewards)

    return Batch(tuple(TrainingGroup(group, targets(group)) for group in groups))


@dataclass(slots=True)
class Updater:
    """Optimizer steps on batches with one objective.

    Attributes:
        reset_every: number of phases after which the optimizer's moments are reset; 0 for never.
        reference: the frozen policy of objectives that need one.
        teacher: a policy whose distributions are matched, beside the objective or in its place.
        lr_scale: factor on the schedule; the guard lowers it when it rolls back.
        covariance_share: share of a batch's tokens whose gradient is dropped (``objectives.covariance``).
        entropy_bonus, variety_bonus: the bonuses of this updater's batches (``make_batch``).
        version: number of steps that have moved the weights; equal versions have equal weights.
        num_workers: threads that differentiate micro-batches in parallel; 0 for one per thread of torch.
    """

    policy: Policy
    objective: Objective
    safe_step: SafeStep
    schedule: Schedule
    runtime: Runtime
    tokens_per_microbatch: int
    drop_zero_signal: bool
    anchor_from_sampler: bool
    reset_every: int = 0
    reference: Policy | None = None
    teacher: Teacher | None = None
    lr_scale: float = 1.0
    covariance_share: float = 0.0
    entropy_bonus: float = 0.0
    variety_bonus: float = 0.0
    version: int = 0
    num_workers: int = 0
    probe: WeightProbe = field(init=False)
    workers: GradientWorkers = field(init=False)
    _current: Objective = field(init=False)
    _rows: list[Row] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.probe = WeightProbe(self.safe_step.parameters)
        self.workers = GradientWorkers(self.num_workers)
        self._current = self.objective

    @property
    def uses_rewards(self) -> bool:
        """Whether rewards decide on updates, and are not only measured."""
        return self.teacher is None or not self.teacher.alone

    def make_batch(self, groups: Sequence[Group], anchors: Sequence[Anchor] | None = None) -> Batch:
        """Build a batch of verified groups with the targets of this updater's objective and its bonuses.

        Args:
            anchors: by group, ``logp_old`` of the policy that sampled it, if the weights have moved since.
        """
        batch = make_batch(self.objective, groups, self.entropy_bonus, self.variety_bonus, self.uses_rewards)
        if anchors is None:
            return batch
        return Batch(tuple(dataclasses.replace(g, logp_old=a) for g, a in zip(batch.groups, anchors, strict=True)))

    def run(
        self, batch: Batch, num_updates: int, first_update: int, seed: int, *, shuffle: bool = True
    ) -> UpdateReport:
        """Run ``num_updates`` optimizer steps on one batch of rollouts.

        Args:
            first_update: index of the phase's first optimizer step in the run, for the learning-rate schedule.
            seed: decides the partition of groups into updates.
            shuffle: ``False`` takes the groups in the given order instead.

        Raises:
            TrainingDiverged: ``max_bad_steps`` consecutive steps had a non-finite loss or gradient.
        """
        if self.reset_every and (first_update // num_updates) % self.reset_every == 0:
            forget_moments(self.safe_step.optimizer)
        report = UpdateReport()
        self._current = self.objective
        if self.covariance_share:
            self._current = CovarianceClip.of_batch(self.objective, batch, self.covariance_share)
        self.probe.remember()
        self._rows = rows_of(batch.groups)
        num_groups = len(batch.groups)
        order = np.random.default_rng(seed).permutation(num_groups) if shuffle else np.arange(num_groups)
        minibatches = batch.minibatches(num_updates, [int(index) for index in order])
        shares = [self._share(minibatch) for minibatch in minibatches]
        at_anchor = all(group.logp_old is None for group in batch.groups)
        if at_anchor:
            # Until the first step the anchor is the policy itself; later updates need its log-probabilities stored now.
            shares[1:] = [self._with_anchor(later, report) for later in shares[1:]]
        for index, (minibatch, mine) in enumerate(zip(minibatches, shares, strict=True)):
            if self.reference is not None:
                mine = self._with_reference(mine, self.reference, report)
            if self.teacher is not None:
                mine = self._with_teacher(mine, self.teacher, report)
            report.lr = self.schedule.set_lr(self.safe_step.optimizer, first_update + index, self.lr_scale)
            moved = self._step(minibatch, mine, at_anchor, report, (seed, index))
            self.version += moved
            at_anchor = at_anchor and not moved
        report.moved = self.probe.measure()
        return report.over_ranks(self.runtime)

    def _share(self, batch: Batch) -> Batch:
        """Return the groups that this rank differentiates; with one rank, all of them."""
        sizes = [group.group.num_tokens for group in batch.groups]
        return Batch(tuple(self.runtime.shard_balanced(batch.groups, sizes)))

    def _with_anchor(self, batch: Batch, report: UpdateReport) -> Batch:
        """Fill in ``logp_old``: the sampler's values if they equal the trainer's, else those of a forward pass."""
        if self.anchor_from_sampler:
            olds = [sampler_anchor(group.group) for group in batch.groups]
        else:
            olds = self._scored(batch.groups, self.policy, report.scored)
        return Batch(tuple(dataclasses.replace(g, logp_old=o) for g, o in zip(batch.groups, olds, strict=True)))

    def _with_reference(self, batch: Batch, reference: Policy, report: UpdateReport) -> Batch:
        """Fill in ``logp_ref``."""
        scored = self._scored(batch.groups, reference, report.scored)
        return Batch(tuple(dataclasses.replace(g, logp_ref=r) for g, r in zip(batch.groups, scored, strict=True)))

    def _with_teacher(self, batch: Batch, teacher: Teacher, report: UpdateReport) -> Batch:
        """Fill in what the teacher reads, at the policy's temperature."""

        def in_step(groups: Sequence[TrainingGroup], policy: Policy, read: Read) -> list[Anchor]:
            return self._scored(groups, policy, report.taught, read)

        taught = teacher.read([teacher.sees(group) for group in batch.groups], self.policy.temperature, in_step)
        return Batch(tuple(dataclasses.replace(g, taught=t) for g, t in zip(batch.groups, taught, strict=True)))

    @torch.no_grad()
    def _scored(
        self,
        groups: Sequence[TrainingGroup],
        policy: Policy,
        counts: UpdateCounts,
        read: Read | None = None,
    ) -> list[Anchor]:
        """Compute token log-probabilities (or ``read``) of every completion under the current ``policy``, by group."""
        parts = microbatches(rows_of(groups), self.tokens_per_microbatch, policy.padded_tokens)
        rank_sync = RankSync.for_update(self.runtime, [], self._rows, len(parts))  # ranks agree before the first pass
        scored = score(policy, groups, self.tokens_per_microbatch, counts.add, read)
        rank_sync.run_dummy_passes(policy)
        return scored

    def _step(self, batch: Batch, mine: Batch, at_anchor: bool, report: UpdateReport, seed: Sequence[int]) -> bool:
        """Take one optimizer step, or skip and count it; return whether the weights moved.

        Args:
            batch, mine: the whole minibatch, and this rank's share of it with its anchor filled in; decisions depend on
                the whole.

        While the policy is still the anchor, every log-ratio is set to exactly 0. Rounding in stored
        anchors would otherwise give a batch without signal a gradient of 1e-7, which Adam scales up to a full step.
        """
        lengths = [c.num_sampled for group in batch.groups for c in group.group.completions]
        loss = StepLoss(self._current, self._current.normalizer(torch.tensor(lengths)), self.teacher)
        everyone, groups = batch.groups, mine.groups
        if at_anchor:
            groups = tuple(dataclasses.replace(group, logp_old=None) for group in groups)
        # A second evaluation is not at the anchor; there, groups without signal do have a gradient.
        reevaluated = getattr(self.safe_step.optimizer, "extra_pass", "none") == "reevaluation"
        can_drop = self._current.can_drop_zero_advantage_groups(at_anchor and not reevaluated)
        if self.drop_zero_signal and can_drop and self.teacher is None:
            groups = tuple(group for group in groups if group.has_signal)
            everyone = tuple(group for group in everyone if group.has_signal)
            report.counts.dropped_groups += len(batch.groups) - len(everyone)
        self.safe_step.optimizer.zero_grad(set_to_none=True)
        whole = self._current.needs_whole_groups
        parts = self.workers.split(self.policy, rows_of(groups), self.tokens_per_microbatch, whole_groups=whole)
        rows = rows_of(everyone)
        rank_sync = RankSync.for_update(self.runtime, self.safe_step.parameters, rows, len(parts))
        passes = self.workers.run(self.policy, parts, partial(self._backward, loss, rank_sync.scale, at_anchor))
        for each in passes:
            report.add_pass(each, self.policy.shared_prompt)
        rank_sync.run_dummy_passes(self.policy)
        rank_sync.synchronise()
        total = self.runtime.sum({"loss": float(sum(each.loss for each in passes))})["loss"]
        filled = [each.rows for each in passes]
        extra = ExtraPass(self.policy, loss, rows, filled, rank_sync, report.counts.add)
        head = head_gradient(self.policy.loaded.model)  # before it is clipped
        with span("optimizer"):
            norm = self.safe_step.apply(total, lambda: extra.step(self.safe_step.optimizer, seed))
        if norm is None:
            report.bad_steps += 1
            return False
        if self.runtime.is_main:  # equal on all ranks already
            report.add("loss/objective", Mean(total, 1))
            for key, mean in {"optim/grad_norm": Mean(norm, 1), **head}.items():
                report.add(key, mean)
        return norm > 0

    def _backward(
        self, loss: StepLoss, scale: int, at_anchor: bool, policy: Policy, part: Sequence[Row]
    ) -> GradientPass:
        """Accumulate the part's gradient in the policy's model. Several threads run this, each with its own policy."""
        logp_new, tokens, output = loss.of(policy, part)
        with span("backward"):
            (output.loss * scale).backward()  # type: ignore[no-untyped-call]
        anchors = torch.split(tokens.logp_old, [row.num_tokens for row in part])
        return GradientPass(
            rows=[dataclasses.replace(row, logp_old=anchor) for row, anchor in zip(part, anchors, strict=True)],
            loss=float(output.loss.detach()),
            metrics=output.metrics,
            sampler_gap=float((tokens.logp_gen - logp_new.detach()).abs().max()) if at_anchor else None,
            mismatch=_mismatch(part, logp_new.detach(), tokens) if at_anchor else {},
        )


def _mismatch(part: Sequence[Row], logp_new: Tensor, tokens: TokenBatch) -> dict[str, Mean]:
    """Measure sampler against trainer on the tokens of a micro-batch at the anchor."""
    compared = Mismatch().measure(logp_new, tokens.logp_gen, tokens.sequence, tokens.num_sequences)
    return compared | sampler_gaps([(row.prompt, row.completion) for row in part], logp_new, tokens.logp_gen)

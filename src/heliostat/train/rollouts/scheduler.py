r"""The schedule of sampling: for the current step, or for later steps too, in a thread in parallel with training.

With ``rollout.max_staleness = s`` step ``k`` trains on groups that were sampled with the weights after step
``max(o, k - 1 - s)``, where ``o`` is the step that the run began at or was last rolled back to:

    main thread:      wait for the rollouts of k -> request those of k + 1 .. k + s -> verify, train on k
    sampling thread:  sample k + 1 with a copy of the weights after k - s, then k + 2, ...

The weights that sample a step, and the time at which its problems are chosen, follow from the step and ``s`` alone, and
never from durations. With ``s = 0`` the main thread samples with the trained model itself.

A checkpoint waits for requested rollouts from older weights, and stores them. Those of the checkpoint's own weights
are sampled again after a resume. A rollback discards all rollouts, since they were sampled by an abandoned
policy. An error in the sampling thread is raised by ``next`` for its step.

Left out: the content of a request (``planner``), and the data of a step (``batch``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, Self

import torch
from torch import Tensor

from heliostat.config import Recipe
from heliostat.models import LoadedModel, are_current, snapshot_weights, with_weights
from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.turns import sampler_gaps
from heliostat.rollout import Engine, RolloutCounts, SampleRequest
from heliostat.spans import timed_spans
from heliostat.tasks import JudgeFailed, VerifierPool
from heliostat.tasks.judging import JudgeCounts
from heliostat.tasks.verifier_pool.pool import VerdictCollector
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import Anchor, score
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.rollouts.batch import Rollouts
from heliostat.train.rollouts.request import RolloutRequest
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import Group, Mean, Problem, TrainingGroup

NUM_COMPARED = 2
"""Groups of a batch on which sampler and trainer are compared, where the sampler's values are the anchor."""


@dataclass(frozen=True, slots=True)
class SampledShare:
    """A rank's share of a step's rollouts, sampled and not yet verified."""

    groups: list[Group]
    counts: RolloutCounts
    scored: UpdateCounts
    logp_old: list[Anchor]
    max_gap: float | None
    mismatch: dict[str, Mean]
    seconds: float
    spans: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PendingRollout:
    """A request that is being sampled."""

    request: RolloutRequest
    verdicts: VerdictCollector
    share: Future[SampledShare]


class RolloutScheduler:
    """The scheduler of a run's rollouts.

    Args:
        request: builds the request of a step from the current weights, success rates and settings; called in the
            order of steps.
        anchor_from_sampler: whether the sampler's log-probabilities serve as ``logp_old``; else the trainer computes it
            with the sampling weights.

    **Limits** ``max_staleness = 0``: no thread, no copy, and the rollouts of every step from its own weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        bundle: ModelBundle,
        pool: VerifierPool,
        runtime: Runtime,
        ledger: Ledger,
        request: Callable[[int], RolloutRequest],
        anchor_from_sampler: bool,
    ) -> None:
        self.bound = recipe.rollout.max_staleness
        self.recipe, self.bundle, self.pool, self.runtime, self.ledger = recipe, bundle, pool, runtime, ledger
        self.request, self.anchor_from_sampler = request, anchor_from_sampler
        self._known: dict[int, PendingRollout | Rollouts] = {}
        self._weights: list[Tensor] = []
        self.engine: Engine = bundle.engine
        self._thread: ThreadPoolExecutor | None = None
        if bundle.sampler_copy is not None:
            self.engine = bundle.engine.clone_for(bundle.sampler_copy)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling without waiting for results."""
        if self._thread is not None:
            self._abandon()
            self._thread.shutdown()

    def next(self, step: int) -> Rollouts:
        """Return the rollouts of ``step``, and begin to sample those of the following steps.

        Raises:
            Exception: any error of sampling or verification, whichever thread it occurred in.
        """
        self._known = {known: entry for known, entry in self._known.items() if known >= step}
        with self.ledger.phase("rollout"), self.runtime.raise_on_all_ranks():
            self._begin(step)
            self._wait(step)
        for coming in range(step + 1, min(step + self.bound, self.recipe.train.num_steps) + 1):
            self._begin(coming)
        return self._verified(step)

    def discard(self) -> None:
        """Discard all rollouts, pending ones included, since their policy has been abandoned."""
        self._abandon()
        self._known, self._weights = {}, []
        if self.bundle.sampler_copy is not None:
            self.engine = self.bundle.engine.clone_for(self.bundle.sampler_copy)

    def wait_pending(self, step: int) -> list[Rollouts]:
        """Wait for the rollouts of later steps whose weights are older than those after ``step``."""
        coming = [
            known
            for known, entry in sorted(self._known.items())
            if known > step and (entry.request if isinstance(entry, PendingRollout) else entry).policy_step < step
        ]
        for known in coming:
            with self.ledger.phase("rollout"), self.runtime.raise_on_all_ranks():
                self._wait(known)
        return [self._verified(known) for known in coming]

    # -- in a checkpoint --------------------------------------------------------------------------------------------

    def state_dict(self, step: int) -> list[dict[str, Any]]:
        """Return the pending rollouts from weights older than ``step``, for a checkpoint."""
        return [rollouts.state_dict() for rollouts in self.wait_pending(step)]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]], problems: Iterable[Problem]) -> None:
        """Restore the rollouts of a checkpoint."""
        by_key = {(problem.task, problem.problem_id): problem for problem in problems}
        self._known = {state["step"]: Rollouts.of_state(state, by_key) for state in states}

    # -- requests ---------------------------------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        """Request the rollouts of a step, unless they are known already."""
        if step in self._known:
            return
        request = self.request(step)
        verdicts = self.pool.begin()  # a group is verified while others are still being sampled
        share: Future[SampledShare]
        if self._thread is None:
            share = Future()
            share.set_result(self._sample(request, verdicts))
        else:
            # Requests with the same weights share one copy of them.
            if not are_current(self._weights, self.bundle.loaded):
                self._weights = []  # free the old copy first
                self._weights = snapshot_weights(self.bundle.loaded)
            work = partial(self._sample_with, self._weights, request, verdicts)
            share = self._thread.submit(work)
        self._known[step] = PendingRollout(request, verdicts, share)

    def _wait(self, step: int) -> None:
        entry = self._known[step]
        if isinstance(entry, PendingRollout):
            entry.share.result()

    def _verified(self, step: int) -> Rollouts:
        """Gather the verified rollouts of all ranks, for a step that has been sampled."""
        entry = self._known[step]
        with self.ledger.phase("verify"), self.runtime.raise_on_all_ranks():
            if isinstance(entry, Rollouts):
                return entry
            share = entry.share.result()
            verified = entry.verdicts.finish(share.groups)
        groups, old = scored_alone(verified, share.logp_old)
        request, runtime = entry.request, self.runtime
        gaps = [gap for gap in runtime.gather(share.max_gap) if gap is not None]
        everyone = runtime.gather_groups(request.prompts, groups)
        anchors = runtime.gather_groups(request.prompts, old) if self._is_scored(request) else []
        judging = self.pool.judging
        rollouts = Rollouts(
            step=request.step,
            policy_step=request.policy_step,
            version=request.version,
            sources=request.sources,
            groups=[group for group in everyone if not group.is_empty],
            counts=RolloutCounts(**{key: int(num) for key, num in runtime.sum(asdict(share.counts)).items()}),
            scored=share.scored.over_ranks(runtime),
            logp_old=[anchor for anchor in anchors if anchor],
            max_gap=max(gaps, default=None),
            mismatch=runtime.merge(share.mismatch),
            judged=JudgeCounts() if judging is None else judging.take_counts(runtime.sum),
            seconds=share.seconds,
            spans=share.spans,
        )
        num_updates = self.recipe.train.updates_per_step
        if judging is not None and len(rollouts.groups) < num_updates:
            raise JudgeFailed(
                f"step {step} has {len(rollouts.groups)} groups with two scored completions, and "
                f"train.updates_per_step = {num_updates} needs as many; mend {judging.judge.name}"
                f"{' or the environment' if self.recipe.environment.enabled else ''}, then continue the run"
            )
        self._known[step] = rollouts
        return rollouts

    def _is_scored(self, request: RolloutRequest) -> bool:
        """Return whether the trainer's log-probabilities of all groups are the anchor."""
        return request.is_ahead and not self.anchor_from_sampler

    def _abandon(self) -> None:
        pending = [entry.share for entry in self._known.values() if isinstance(entry, PendingRollout)]
        if all(share.done() for share in pending):
            return
        for share in pending:
            share.cancel()
        self.engine.stop()
        wait(pending)

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _sample_with(self, weights: list[Tensor], request: RolloutRequest, verdicts: VerdictCollector) -> SampledShare:
        assert self.bundle.sampler_copy is not None
        with with_weights(self.bundle.sampler_copy, weights):
            return self._sample(request, verdicts, self.bundle.sampler_copy)

    def _sample(
        self, request: RolloutRequest, verdicts: VerdictCollector, sampler_copy: LoadedModel | None = None
    ) -> SampledShare:
        began = monotonic()
        with self._timed(sampler_copy) as spans:
            sample_request = SampleRequest(
                self.runtime.shard_prompts(request.prompts),
                self.recipe.rollout.group_size,
                request.settings,
                seed=request.seed,
                policy_step=request.policy_step,
                on_group=verdicts.submit,
            )
            groups = self.engine.sample(sample_request)
        seconds, counts = monotonic() - began, self.engine.take_counts()
        scored, old = UpdateCounts(), list[Anchor]()
        if sampler_copy is not None and request.is_ahead:
            old = self._score(sampler_copy, request, groups, scored)
        max_gap, mismatch = compare_scored(groups, old)
        return SampledShare(groups, counts, scored, old, max_gap, mismatch, seconds, spans)

    def _timed(self, sampler_copy: LoadedModel | None) -> AbstractContextManager[dict[str, float]]:
        """Time the spans of the sampling thread, where enabled; those of the main thread are timed with the step."""
        return timed_spans() if sampler_copy is not None and self.ledger.times_spans else nullcontext({})

    def _score(
        self, sampler_copy: LoadedModel, request: RolloutRequest, groups: list[Group], scored: UpdateCounts
    ) -> list[Anchor]:
        """Compute log-probabilities with the sampling weights, of all groups if they are the anchor, else of a few."""
        train = self.recipe.train
        policy = Policy(
            sampler_copy,
            request.settings.temperature,
            train.shared_prompt,
            gradient_checkpointing=train.gradient_checkpointing,
        )
        some, counts = groups[:NUM_COMPARED], UpdateCounts()  # diagnosis is not counted
        if self._is_scored(request):
            some, counts = groups, scored
        rows = [TrainingGroup(group, torch.zeros(len(group.completions))) for group in some]
        return score(policy, rows, train.tokens_per_microbatch, counts.add)


def scored_alone(groups: Sequence[Group], old: Sequence[Anchor]) -> tuple[list[Group], list[Anchor]]:
    """Leave out unscored completions, and with them their log-probabilities.

    A group that loses all but one completion is emptied, because nothing is left to compare that one with.

    Args:
        old: by group, log-probabilities of its completions; empty where not computed.
    """
    kept, anchors = [], []
    for index, group in enumerate(groups):
        scored = group.scored()
        if len(scored.completions) == 1 < len(group.completions):
            scored = replace(group, completions=(), verdicts=())
        kept.append(scored)
        if index < len(old):
            members = {id(completion) for completion in scored.completions}
            pairs = zip(group.completions, old[index], strict=True)
            anchors.append(tuple(logp for completion, logp in pairs if id(completion) in members))
    return kept, anchors


def compare_scored(groups: list[Group], old: list[Anchor]) -> tuple[float | None, dict[str, Mean]]:
    """Compare sampler and trainer on the scored groups by the largest gap and the moments of all differences."""
    pairs = [
        (logp, torch.from_numpy(completion.logp_gen))
        for group, anchor in zip(groups, old, strict=False)
        for completion, logp in zip(group.completions, anchor, strict=True)
    ]
    if not pairs:
        return None, Mismatch().empty()
    train, gen = (torch.cat(side) for side in zip(*pairs, strict=True))
    sequence = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(logp) for logp, _ in pairs]))
    members = [(group.prompt, one) for group, _ in zip(groups, old, strict=False) for one in group.completions]
    moments = Mismatch().measure(train, gen, sequence, len(pairs)) | sampler_gaps(members, train, gen)
    return float((gen - train).abs().max()), moments

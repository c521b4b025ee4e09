r"""Sampling: of the step at hand, or of coming steps too, in a thread of its own while earlier steps are trained on.

With ``rollout.max_staleness = s`` the groups that step ``k`` trains on were sampled by the weights that step
``max(o, k - 1 - s)`` left behind, where ``o`` is the step that the run began at or was taken back to by the guard:

    step k:    take the rollouts of k (wait) -> order those of k + 1 .. k + s -> judge, train
    thread:    ... sample k + 1 with a copy of the weights of k - s, sample k + 2 ...

So which weights sample what, and which problems are chosen when, follows from the step and ``s`` alone, never from how
long anything took. ``s = 0`` is sampling in this thread with the trained model itself.

A checkpoint keeps the rollouts that exist or are being made, if their weights are gone by then (it waits for them);
those of the checkpoint's own weights are sampled again. The guard's going back drops what is there: it was sampled by a
policy that has been abandoned. An error in the thread is raised where its rollouts are asked for.

Left out: what a step orders (``train.trainer``), and how its data look (``batch``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic
from typing import Any, Self

import torch
from torch import Tensor

from heliostat.config import Recipe
from heliostat.models import LoadedModel, are_current, holding, trained_weights
from heliostat.monitors.mismatch import Mismatch
from heliostat.rollout import Engine, RolloutCounts
from heliostat.spans import timed_spans
from heliostat.tasks import VerifierPool
from heliostat.tasks.verifier_pool.pool import Judging
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import Anchor, score
from heliostat.train.model_bundle import Bench
from heliostat.train.rollouts.batch import Order, Rollouts
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import Group, Mean, Problem, TrainingGroup

NUM_COMPARED = 2
"""Groups of a batch on which sampler and trainer are compared, where the anchor is the sampler's own."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A rank's share of a step's rollouts, sampled and on its way to verdicts."""

    groups: list[Group]
    counts: RolloutCounts
    scored: UpdateCounts
    logp_old: list[Anchor]
    max_gap: float | None
    mismatch: dict[str, Mean]
    seconds: float
    spans: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Flight:
    """An order that is being carried out."""

    order: Order
    judging: Judging
    landing: Future[Landed]


class Ahead:
    """Rollouts by step.

    Args:
        order: what a step samples with the weights, success rates and settings of now; asked for in order of steps.
        anchor_from_sampler: the sampler's log-probabilities are the trainer's; else the trainer computes ``logp_old``
            with the weights that sampled.

    **Limits** ``max_staleness = 0``: no thread, no copy, and the rollouts of every step from its own weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        bench: Bench,
        pool: VerifierPool,
        runtime: Runtime,
        ledger: Ledger,
        order: Callable[[int], Order],
        anchor_from_sampler: bool,
    ) -> None:
        self.bound = recipe.rollout.max_staleness
        self.recipe, self.bench, self.pool, self.runtime, self.ledger = recipe, bench, pool, runtime, ledger
        self.order, self.anchor_from_sampler = order, anchor_from_sampler
        self._known: dict[int, Flight | Rollouts] = {}
        self._weights: list[Tensor] = []
        self.engine: Engine = bench.engine
        self._thread: ThreadPoolExecutor | None = None
        if bench.twin is not None:
            self.engine = bench.engine.beside(bench.twin)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever is being sampled, without waiting for its results."""
        if self._thread is not None:
            self._abandon()
            self._thread.shutdown()

    def next(self, step: int) -> Rollouts:
        """The rollouts to train step ``step`` on; those of the steps behind it are begun.

        Raises:
            Exception: what sampling or judging them ended in, whichever thread that was in.
        """
        self._known = {known: entry for known, entry in self._known.items() if known >= step}
        with self.ledger.phase("rollout"), self.runtime.together():
            self._begin(step)
            self._wait(step)
        for coming in range(step + 1, min(step + self.bound, self.recipe.train.num_steps) + 1):
            self._begin(coming)
        return self._settled(step)

    def drop(self) -> None:
        """Forget all rollouts: the policy that sampled them, and perhaps is sampling now, has been abandoned."""
        self._abandon()
        self._known, self._weights = {}, []
        if self.bench.twin is not None:
            self.engine = self.bench.engine.beside(self.bench.twin)

    def settle(self, step: int) -> list[Rollouts]:
        """Wait for the rollouts of later steps whose weights are older than those that ``step`` left behind."""
        coming = [
            known
            for known, entry in sorted(self._known.items())
            if known > step and (entry.order if isinstance(entry, Flight) else entry).policy_step < step
        ]
        for known in coming:
            with self.ledger.phase("rollout"), self.runtime.together():
                self._wait(known)
        return [self._settled(known) for known in coming]

    # -- in a checkpoint --------------------------------------------------------------------------------------------

    def state_dict(self, step: int) -> list[dict[str, Any]]:
        """What a checkpoint of ``step`` keeps."""
        return [rollouts.state_dict() for rollouts in self.settle(step)]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]], problems: Iterable[Problem]) -> None:
        """Continue from a checkpoint."""
        by_key = {(problem.task, problem.problem_id): problem for problem in problems}
        self._known = {state["step"]: Rollouts.of_state(state, by_key) for state in states}

    # -- flights ----------------------------------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        """Order the rollouts of a step, unless they are known already."""
        if step in self._known:
            return
        order = self.order(step)
        judging = self.pool.begin()  # a group is judged while others are still being sampled
        landing: Future[Landed]
        if self._thread is None:
            landing = Future()
            landing.set_result(self._sample(order, judging))
        else:
            # Orders at the same weights share one copy of them.
            if not are_current(self._weights, self.bench.loaded):
                self._weights = []  # let go first
                self._weights = trained_weights(self.bench.loaded)
            work = partial(self._sample_with, self._weights, order, judging)
            landing = self._thread.submit(work)
        self._known[step] = Flight(order, judging, landing)

    def _wait(self, step: int) -> None:
        entry = self._known[step]
        if isinstance(entry, Flight):
            entry.landing.result()

    def _settled(self, step: int) -> Rollouts:
        """The judged rollouts of all ranks, of a step whose sampling is done."""
        entry = self._known[step]
        with self.ledger.phase("verify"), self.runtime.together():
            if isinstance(entry, Rollouts):
                return entry
            landed, judging = entry.landing.result(), entry.judging
            groups = judging.finish(landed.groups)
        order, runtime = entry.order, self.runtime
        gaps = [gap for gap in runtime.gather(landed.max_gap) if gap is not None]
        settled = Rollouts(
            step=order.step,
            policy_step=order.policy_step,
            version=order.version,
            sources=order.sources,
            groups=runtime.regroup(order.prompts, groups),
            counts=RolloutCounts(**{key: int(num) for key, num in runtime.sum(asdict(landed.counts)).items()}),
            scored=landed.scored.over_ranks(runtime),
            logp_old=runtime.regroup(order.prompts, landed.logp_old) if self._is_scored(order) else [],
            max_gap=max(gaps, default=None),
            mismatch=runtime.merge(landed.mismatch),
            seconds=landed.seconds,
            spans=landed.spans,
        )
        self._known[step] = settled
        return settled

    def _is_scored(self, order: Order) -> bool:
        """Whether the trainer's numbers of all groups are the anchor."""
        return order.is_ahead and not self.anchor_from_sampler

    def _abandon(self) -> None:
        flights = [entry.landing for entry in self._known.values() if isinstance(entry, Flight)]
        if all(landing.done() for landing in flights):
            return
        for landing in flights:
            landing.cancel()
        self.engine.stop()
        wait(flights)

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _sample_with(self, weights: list[Tensor], order: Order, judging: Judging) -> Landed:
        assert self.bench.twin is not None
        with holding(self.bench.twin, weights):
            return self._sample(order, judging, self.bench.twin)

    def _sample(self, order: Order, judging: Judging, twin: LoadedModel | None = None) -> Landed:
        began = monotonic()
        with self._timed(twin) as spans:
            groups = self.engine.sample(
                self.runtime.share(order.prompts),
                self.recipe.rollout.group_size,
                order.settings,
                seed=order.seed,
                policy_step=order.policy_step,
                announce=judging.announce,
            )
        seconds, counts = monotonic() - began, self.engine.take_counts()
        scored, old = UpdateCounts(), list[Anchor]()
        if twin is not None and order.is_ahead:
            old = self._score(twin, order, groups, scored)
        max_gap, mismatch = _compared(groups, old)
        return Landed(groups, counts, scored, old, max_gap, mismatch, seconds, spans)

    def _timed(self, twin: LoadedModel | None) -> AbstractContextManager[dict[str, float]]:
        """Spans of the thread, where they are asked for; those of this one are timed with the step."""
        return timed_spans() if twin is not None and self.ledger.times_spans else nullcontext({})

    def _score(self, twin: LoadedModel, order: Order, groups: list[Group], scored: UpdateCounts) -> list[Anchor]:
        """The trainer's numbers under the weights that sampled: of all groups if they are the anchor, else of a few."""
        train = self.recipe.train
        policy = Policy(twin, order.settings.temperature, train.shared_prompt, recompute=train.recompute)
        some, counts = groups[:NUM_COMPARED], UpdateCounts()  # diagnosis is in no account
        if self._is_scored(order):
            some, counts = groups, scored
        rows = [TrainingGroup(group, torch.zeros(len(group.completions))) for group in some]
        return score(policy, rows, train.tokens_per_microbatch, counts.add)


def _compared(groups: list[Group], old: list[Anchor]) -> tuple[float | None, dict[str, Mean]]:
    """Sampler against trainer on the groups that were scored: the largest gap, and the moments of all."""
    pairs = [
        (logp, torch.from_numpy(completion.logp_gen))
        for group, anchor in zip(groups, old, strict=False)
        for completion, logp in zip(group.completions, anchor, strict=True)
    ]
    if not pairs:
        return None, Mismatch().empty()
    train, gen = (torch.cat(side) for side in zip(*pairs, strict=True))
    sequence = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(logp) for logp, _ in pairs]))
    return float((gen - train).abs().max()), Mismatch().measure(train, gen, sequence, len(pairs))

"""Sampling ahead: which weights sample what follows from steps and the bound, never from time; nothing hangs."""

import random
import threading
import time
from dataclasses import dataclass, field, replace

import pytest
import torch

from heliostat.models import sampler_copy_of, snapshot_weights, with_weights
from heliostat.rollout import (
    DecodeLimits,
    NonFiniteLogits,
    SampleRequest,
    SamplingSettings,
    SamplingStopped,
    TorchEngine,
)
from heliostat.rollout.completions import CompletionBuilder
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.logprobs.score import score
from heliostat.train.model_bundle import ModelBundle
from heliostat.train.rollouts.request import RolloutRequest
from heliostat.train.rollouts.scheduler import NUM_COMPARED, RolloutScheduler, compare_scored
from heliostat.train.update.counts import UpdateCounts
from heliostat.types import TrainingGroup, Verdict
from tests.support import small
from tests.support.nano import make_nano, make_prompts
from tests.support.trajectories import trajectories

NUM_STEPS = 6
LIMITS = DecodeLimits(6)
GROUP_SIZE = 4


class Judge:
    """Gives every completion its length, in this process."""

    judging = None

    def begin(self):
        return self

    def submit(self, index, group):
        pass

    def finish(self, groups):
        return [
            replace(group, verdicts=tuple(Verdict(float(len(c.token_ids)), True) for c in group.completions))
            for group in groups
        ]


@dataclass
class Run:
    """Steps that each move the weights a little, and nothing else of a trainer."""

    recipe: object
    anchor_from_sampler: bool = True
    step: int = 0
    version: int = 0
    weights: list = field(default_factory=list)

    def __post_init__(self):
        self.loaded = make_nano()
        bound = self.recipe.rollout.max_staleness
        engine = TorchEngine(self.loaded, LIMITS)
        bundle = ModelBundle(
            self.loaded, engine, self.recipe, torch.float32, sampler_copy_of(self.loaded) if bound else None
        )
        runtime, self.ledger = Runtime(torch.device("cpu")), Ledger()
        self.scheduler = RolloutScheduler(
            self.recipe, bundle, Judge(), runtime, self.ledger, self.request, self.anchor_from_sampler
        )
        self.weights.append(snapshot_weights(self.loaded))
        self.prompts = make_prompts(self.loaded, 3)

    def request(self, step):
        settings = SamplingSettings(temperature=1.0)
        return RolloutRequest(step, self.prompts, settings, 100 + step, self.step, self.version, {})

    def train(self):
        """The weights after this step, which depend on the step alone."""
        self.step += 1
        self.version += 1
        generator = torch.Generator().manual_seed(self.step)
        with torch.no_grad():
            for parameter in self.loaded.model.parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
        self.weights.append(snapshot_weights(self.loaded))

    def steps(self, until=NUM_STEPS):
        while self.step < until:
            yield self.step + 1, self.scheduler.next(self.step + 1)
            self.train()


def make_run(tmp_path, bound, **changes):
    recipe = small.recipe(
        tmp_path, rollout__max_staleness=bound, rollout__group_size=GROUP_SIZE, train__num_steps=NUM_STEPS
    )
    return Run(recipe, **changes)


def expected(run, step, policy_step):
    """What an engine of its own samples with the weights of ``policy_step``."""
    loaded = make_nano()
    twin = sampler_copy_of(loaded)
    with with_weights(twin, run.weights[policy_step]):
        return TorchEngine(twin, LIMITS).sample(
            SampleRequest(
                run.prompts, GROUP_SIZE, SamplingSettings(temperature=1.0), seed=100 + step, policy_step=policy_step
            )
        )


def content(groups):
    return [
        (group.policy_step, one.token_ids, one.logp_gen.tolist(), one.entropy.tolist(), one.text, one.seed)
        for group in groups
        for one in group.completions
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0, 1, 2, 4])
@pytest.mark.parametrize("hurry", ["none", "sampler waits", "trainer waits"])
def test_step_k_is_sampled_by_the_weights_of_k_minus_1_minus_s(tmp_path, monkeypatch, bound, hurry):
    if hurry == "sampler waits":
        record, pause = CompletionBuilder.record, random.Random(0)
        monkeypatch.setattr(
            CompletionBuilder, "record", lambda *args: (time.sleep(0.01 * pause.random()), record(*args))[1]
        )
    run = make_run(tmp_path, bound)
    with run.scheduler:
        for step, rollouts in run.steps():
            policy_step = max(0, step - 1 - bound)
            assert rollouts.policy_step == policy_step
            assert rollouts.version == policy_step
            assert content(rollouts.groups) == content(expected(run, step, policy_step))
            assert all(group.verdicts for group in rollouts.groups)
            if hurry == "trainer waits":
                time.sleep(0.03)


def test_no_more_than_s_steps_are_requested_before_their_time(tmp_path):
    run = make_run(tmp_path, 2)
    requested = []
    request = run.scheduler.request
    run.scheduler.request = lambda step: requested.append(step) or request(step)
    with run.scheduler:
        seen = [list(requested) for _ in run.steps()]
    assert seen == [list(range(1, min(k + 2, NUM_STEPS) + 1)) for k in range(1, NUM_STEPS + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [1, 2, 4])
@pytest.mark.parametrize("anchor_from_sampler", [True, False])
def test_a_checkpoint_has_what_its_weights_cannot_sample_again(tmp_path, stopped_at, anchor_from_sampler):
    whole = make_run(tmp_path, 2, anchor_from_sampler=anchor_from_sampler)
    with whole.scheduler:
        wanted = dict(whole.steps())
    run = make_run(tmp_path, 2, anchor_from_sampler=anchor_from_sampler)
    with run.scheduler:
        list(run.steps(stopped_at))
        run.scheduler.next(stopped_at + 1)  # interrupted in this step: its requests are made, its update is not
        states = run.scheduler.state_dict(stopped_at)
    assert [state["step"] for state in states] == [stopped_at + 1, stopped_at + 2]
    torch.save(states, tmp_path / "rollouts.pt")
    again = make_run(tmp_path, 2, anchor_from_sampler=anchor_from_sampler)
    while again.step < stopped_at:
        again.train()
    problems = [prompt.problem for prompt in run.prompts]
    again.scheduler.load_state_dict(torch.load(tmp_path / "rollouts.pt", weights_only=True), problems)
    with again.scheduler:
        for step, rollouts in again.steps():
            other = wanted[step]
            assert content(rollouts.groups) == content(other.groups)
            assert [g.prompt for g in rollouts.groups] == [g.prompt for g in other.groups]
            assert [g.verdicts for g in rollouts.groups] == [g.verdicts for g in other.groups]
            for key in ("policy_step", "version", "counts", "scored", "max_gap", "mismatch", "sources"):
                assert getattr(rollouts, key) == getattr(other, key)
            mine, theirs = (one.anchors(version=-1) for one in (rollouts, other))
            assert all(torch.equal(x, y) for a, b in zip(mine, theirs, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_the_anchor_is_the_trainers_own_numbers_under_the_policy_that_sampled(tmp_path):
    run = make_run(tmp_path, 2, anchor_from_sampler=False)
    with run.scheduler:
        for step, rollouts in run.steps():
            if step == 1:
                assert rollouts.anchors(run.version) is None  # the policy that trains is the one that sampled
                continue
            twin = sampler_copy_of(run.loaded)
            groups = [TrainingGroup(group, torch.zeros(GROUP_SIZE)) for group in rollouts.groups]
            with with_weights(twin, run.weights[rollouts.policy_step]):
                own = score(Policy(twin, 1.0, shared_prompt=True), groups, 8192, UpdateCounts().add)
            now = score(Policy(run.loaded, 1.0, shared_prompt=True), groups, 8192, UpdateCounts().add)
            anchors = rollouts.anchors(run.version)
            for anchor, under_then, under_now in zip(anchors, own, now, strict=True):
                assert torch.equal(torch.cat(anchor), torch.cat(under_then))
                assert float((torch.cat(anchor) - torch.cat(under_now)).abs().max()) > 1e-2
            assert rollouts.max_gap < 1e-4
            assert rollouts.scored.rows == 3 * GROUP_SIZE


def test_the_samplers_anchor_is_checked_on_a_few_groups(tmp_path):
    run = make_run(tmp_path, 1)
    with run.scheduler:
        for step, rollouts in run.steps():
            if step == 1:
                assert rollouts.max_gap is None
                continue
            assert 0 < rollouts.max_gap < 1e-4
            assert rollouts.mismatch["mismatch/k1"].count == sum(g.num_tokens for g in rollouts.groups[:NUM_COMPARED])
            for anchor, group in zip(rollouts.anchors(run.version), rollouts.groups, strict=True):
                for logp, one in zip(anchor, group.completions, strict=True):
                    assert torch.equal(logp, torch.from_numpy(one.logp_gen))


def test_weights_that_did_not_move_are_still_the_anchor(tmp_path):
    run = make_run(tmp_path, 1)
    with run.scheduler:
        run.scheduler.next(1)
        run.step += 1  # a step without any signal
        assert run.scheduler.next(2).anchors(run.version) is None


def test_a_batch_costs_what_it_costs_without_staleness(tmp_path):
    counts = []
    for bound in (0, 2):
        run = make_run(tmp_path, bound)
        with run.scheduler:
            counts.append(run.scheduler.next(1).counts)
    assert counts[0] == counts[1]
    assert counts[0].prefills == 3


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_up(monkeypatch):
    """While active, sampling in another thread than this one stays at its first token until it is stopped."""
    record, arrived = CompletionBuilder.record, threading.Event()

    def waits(self, *args):
        if threading.current_thread() is not threading.main_thread() and self.limits is LIMITS and waits.active:
            arrived.set()
            assert self.stopped.wait(20)
        return record(self, *args)

    waits.active = False
    monkeypatch.setattr(CompletionBuilder, "record", waits)
    return waits, arrived


def test_leaving_ends_what_is_being_sampled_and_what_is_waiting(tmp_path, held_up):
    waits, arrived = held_up
    run = make_run(tmp_path, 2)
    with run.scheduler:
        run.scheduler.next(1)
        run.train()
        waits.active = True
        for step in (4, 5):
            run.scheduler._begin(step)
        assert arrived.wait(20)
        ends = [run.scheduler._known[step].share for step in (2, 3, 4, 5)]
    assert all(end.done() for end in ends)
    assert any(not end.cancelled() and isinstance(end.exception(), SamplingStopped) for end in ends)


@pytest.mark.slow
def test_dropped_rollouts_are_made_again_with_the_weights_of_now(tmp_path, held_up):
    waits, arrived = held_up
    run = make_run(tmp_path, 2)
    with run.scheduler:
        list(run.steps(3))
        waits.active = True
        run.scheduler._begin(6)
        assert arrived.wait(20)
        run.scheduler.discard()  # while it samples
        waits.active = False
        run.step, run.version = 2, 2  # rolled back
        for parameter, weight in zip(run.loaded.model.parameters(), run.weights[2], strict=True):
            parameter.data.copy_(weight)
        del run.weights[3:]
        staleness = []
        for step, rollouts in run.steps():
            assert rollouts.policy_step == max(2, step - 3)
            assert content(rollouts.groups) == content(expected(run, step, rollouts.policy_step))
            staleness.append(step - 1 - rollouts.policy_step)
    assert staleness == [0, 1, 2, 2]


def test_an_error_in_the_thread_is_the_error_of_the_step_that_needs_its_rollouts(tmp_path):
    messages = []
    for bound in (0, 2):
        run = make_run(tmp_path, bound)
        with run.scheduler:
            list(run.steps(1))
            with torch.no_grad():
                run.loaded.head.projection.weight.fill_(float("nan"))
            for step in range(2, 2 + bound):  # sampled before that
                run.scheduler.next(step)
            with pytest.raises(NonFiniteLogits) as failure:
                run.scheduler.next(2 + bound)
            messages.append(str(failure.value))
    assert messages[0] == messages[1]


def test_weights_that_somebody_else_wrote_are_sampled_with_too(tmp_path):
    """Copies are compared with the weights, not with a count of steps that a writer may not know of."""
    run = make_run(tmp_path, bound=1)
    with run.scheduler:
        run.scheduler.next(1)
        with torch.no_grad():
            next(iter(run.loaded.model.parameters())).mul_(1.5)
        run.step += 1  # a step that the version does not count
        run.weights.append(snapshot_weights(run.loaded))
        run.scheduler.next(2)  # requests step 3
        third = run.scheduler.next(3)
        assert content(third.groups) == content(expected(run, 3, 1))


# -- trajectories


@pytest.mark.slow
def test_trajectories_are_compared_turn_by_turn(nano):
    groups = trajectories(nano, num_prompts=3)
    anchors = [
        tuple(torch.from_numpy(completion.logp_gen) + 0.25 for completion in group.completions) for group in groups
    ]
    gap, moments = compare_scored(groups, anchors[:2])  # the last group was not scored
    by_turn = {key: mean for key, mean in moments.items() if key.startswith("agent/sampler_gap:")}
    assert gap == pytest.approx(0.25, abs=1e-6)
    assert sum(mean.count for mean in by_turn.values()) == sum(group.num_tokens for group in groups[:2])
    assert by_turn["agent/sampler_gap:2"].value == pytest.approx(0.25, abs=1e-6)

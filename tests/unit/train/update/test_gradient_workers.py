"""Threads that differentiate micro-batches: the plain loop's gradient bit for bit, and every error heard."""

import dataclasses
import threading

import pytest
import torch

from heliostat.config import ObjectiveSection
from heliostat.models import gradient_copy_of
from heliostat.objectives import build_objective
from heliostat.optim import Schedule, accumulate_in_float32
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.packing import GroupShape, balanced_budget, by_group, microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.gradient_workers import GradientWorkers
from heliostat.train.update.safe_step import SafeStep
from heliostat.train.update.updater import Updater, make_batch
from heliostat.types import TrainingGroup
from tests.support.nano import make_nano
from tests.unit.train.update.test_updater import graded


@pytest.fixture
def nano():
    return make_nano(eos_bias=0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def differentiate(policy, part):
    logp = policy.log_probs(part)
    (logp.sum() / 7).backward()
    return float(logp.detach().sum())


def rows_for(loaded, num_prompts=6):
    return rows_of([TrainingGroup(group, torch.arange(4.0)) for group in graded(loaded, num_prompts)])


def gradients(policy, num_workers, parts):
    policy.loaded.model.zero_grad()
    results = GradientWorkers(num_workers).run(policy, parts, differentiate)
    return results, [parameter.grad for parameter in policy.loaded.model.parameters()]


def assert_equal(one, other):
    assert one[0] == other[0]
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_workers_adds_up_the_same_gradient(dtype, checkpointing):
    loaded = make_nano(eos_bias=0)
    loaded.model.to(dtype)
    accumulate_in_float32(loaded.model.parameters())
    policy = Policy(loaded, 0.7, shared_prompt=True, gradient_checkpointing=checkpointing)
    rows = rows_for(loaded)
    parts = [[row] for row in rows[:5]] + [rows[5:8], rows[8:]]
    alone = gradients(policy, 1, parts)
    for num_workers in (2, 3, 20):
        assert_equal(gradients(policy, num_workers, parts), alone)


def test_frozen_weights_stay_without_gradient_and_new_ones_get_one(nano):
    policy = Policy(nano, 1.0, shared_prompt=True)
    parts = [[row] for row in rows_for(nano)[:4]]
    workers = GradientWorkers(2)
    frozen = next(iter(nano.model.parameters()))
    frozen.requires_grad_(False)
    workers.run(policy, parts, differentiate)
    assert frozen.grad is None
    frozen.requires_grad_(True)
    frozen.data = frozen.data * 2  # replaced, not changed in place
    nano.model.zero_grad()
    workers.run(policy, parts, differentiate)
    found = [parameter.grad for parameter in nano.model.parameters()]
    nano.model.zero_grad()
    for part in parts:
        differentiate(policy, part)
    assert all(torch.equal(one, p.grad) for one, p in zip(found, nano.model.parameters(), strict=True))


def test_a_copy_follows_the_policys_settings(nano):
    policy = Policy(nano, 1.0, shared_prompt=True)
    parts = [[row] for row in rows_for(nano)[:3]]
    workers = GradientWorkers(2)
    workers.run(policy, parts, differentiate)
    policy.temperature = 0.5  # as feedback on the temperature does
    assert workers.run(policy, parts, differentiate) == [differentiate(policy, part) for part in parts]


def test_an_updater_differentiates_the_policy_that_it_has_now(nano):
    """Research code replaces ``updater.policy`` between steps; copies of the earlier one's model are of no use then."""
    workers = GradientWorkers(2)
    parts = [[row] for row in rows_for(nano)[:3]]
    workers.run(Policy(nano, 1.0, shared_prompt=True), parts, differentiate)
    other = Policy(make_nano(seed=1, eos_bias=0), 0.5, shared_prompt=True)
    results = workers.run(other, parts, differentiate)
    found = results, [parameter.grad for parameter in other.loaded.model.parameters()]
    assert_equal(found, gradients(other, 1, parts))


def test_the_error_of_a_micro_batch_is_raised_and_the_next_run_is_whole(nano):
    policy = Policy(nano, 1.0, shared_prompt=True)
    parts = [[row] for row in rows_for(nano)]
    workers = GradientWorkers(3)

    def broken(policy, part):
        if part is parts[0]:
            raise ArithmeticError("the first")
        return differentiate(policy, part)

    with pytest.raises(ArithmeticError, match="the first"):
        workers.run(policy, parts, broken)
    nano.model.zero_grad()
    results = workers.run(policy, parts, differentiate)
    found = results, [parameter.grad for parameter in nano.model.parameters()]
    assert_equal(found, gradients(policy, 1, parts))


def test_hooks_on_the_model_see_every_pass(nano):
    """A recorder of layers, or a hook of a user: a copy's passes would not reach it."""
    policy = Policy(nano, 1.0, shared_prompt=True)
    parts = [[row] for row in rows_for(nano)[:4]]
    workers = GradientWorkers(2)
    assert workers.count(policy) == 2
    seen = []
    handle = nano.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    assert workers.count(policy) == 1
    workers.run(policy, parts, differentiate)
    handle.remove()
    assert len(seen) >= len(parts)
    weight = next(iter(nano.model.parameters()))
    handle = weight.register_hook(lambda gradient: seen.append(2))
    workers.run(policy, parts, differentiate)
    handle.remove()
    assert seen.count(2) == len(parts)


def test_workers_are_threads_of_torchs_number_by_default(nano):
    policy = Policy(nano, 1.0, shared_prompt=True)
    parts = [[row] for row in rows_for(nano)[:2]]
    meeting = threading.Barrier(2, timeout=60)

    def meet(policy, part):
        meeting.wait()  # passes only if both parts are in progress at once
        return differentiate(policy, part), torch.get_num_threads()

    assert GradientWorkers().count(policy) == 1
    torch.set_num_threads(2)
    results = GradientWorkers().run(policy, parts, meet)
    assert [threads for _, threads in results] == [1, 1]
    assert torch.get_num_threads() == 2


def test_the_budget_makes_many_micro_batches_and_splits_no_group_for_it(nano):
    policy = Policy(nano, 1.0, shared_prompt=True)
    rows = rows_for(nano, 60)
    budget = balanced_budget(rows, 10**6, policy.padded_tokens)
    largest = max(policy.padded_tokens([GroupShape.of(group)]) for group in by_group(rows))
    assert budget >= largest
    parts = GradientWorkers().split(policy, rows, 10**6)
    assert parts == microbatches(rows, budget, policy.padded_tokens)
    assert len(parts) > 1
    assert balanced_budget(rows, largest + 1, policy.padded_tokens) == largest + 1, "the user's limit holds"
    assert balanced_budget([], 5, policy.padded_tokens) == 5


@pytest.mark.parametrize(
    ("num_groups", "size", "num_parts"),
    [(4, 199, 1), (4, 200, 2), (7, 300, 4), (8, 250, 4), (64, 100, 16), (96, 1000, 16)],
)
def test_micro_batches_are_a_power_of_two_and_of_nearly_one_size(nano, num_groups, size, num_parts):
    rows = [dataclasses.replace(rows_for(nano)[0], group=group) for group in range(num_groups)]

    def cost(shapes):
        return size * len(shapes)

    sizes = [cost(by_group(part)) for part in microbatches(rows, balanced_budget(rows, 10**6, cost), cost)]
    assert len(sizes) == num_parts
    assert max(sizes) == size * -(-num_groups // num_parts), "no split into so many has a smaller largest part"


def test_a_copy_shares_memory_and_ties(nano):
    copied = gradient_copy_of(nano).model
    pairs = list(zip(copied.parameters(), nano.model.parameters(), strict=True))
    assert all(own.data_ptr() == parameter.data_ptr() and own is not parameter for own, parameter in pairs)
    tied = nano.model.get_output_embeddings().weight is nano.model.get_input_embeddings().weight
    assert (copied.get_output_embeddings().weight is copied.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("objective", ["pmd-mean", "dapo"])
def test_update_phases_move_the_weights_alike(objective):
    moved, reports = [], []
    for num_workers in (1, 3):
        loaded = make_nano(eos_bias=0)
        groups = graded(loaded)
        optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-3)
        updater = Updater(
            policy=Policy(loaded, 1.0, shared_prompt=True),
            objective=build_objective(ObjectiveSection(name=objective)),
            safe_step=SafeStep(optimizer, max_grad_norm=1.0, max_bad_steps=3),
            schedule=Schedule(1e-3, 100, "constant"),
            runtime=Runtime(torch.device("cpu")),
            tokens_per_microbatch=40,
            drop_zero_signal=True,
            anchor_from_sampler=True,
            num_workers=num_workers,
        )
        batch = make_batch(updater.objective, groups)
        reports.append(updater.run(batch, num_updates=2, first_update=0, seed=0))
        moved.append([parameter.detach().clone() for parameter in loaded.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*moved, strict=True))
    one, other = map(dataclasses.asdict, reports)
    assert one == other

"""The update phase: the same gradient however the batch is cut, and nothing non-finite reaches the weights."""

import copy
import dataclasses

import pytest
import torch

from heliostat.config import ObjectiveSection
from heliostat.monitors.turns import pieces
from heliostat.objectives import build_objective
from heliostat.optim import Schedule
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs.policy import Policy
from heliostat.train.update.safe_step import SafeStep, TrainingDiverged
from heliostat.train.update.updater import Updater, make_batch
from heliostat.types import Batch, Verdict
from tests.support.nano import make_nano, make_prompts
from tests.support.trajectories import trajectories


def graded(loaded, num_prompts=6, group_size=4, rewards=None):
    engine = TorchEngine(loaded, DecodeLimits(8))
    groups = engine.sample(
        SampleRequest(make_prompts(loaded, num_prompts), group_size, SamplingSettings(), seed=2, policy_step=0)
    )
    pattern = rewards or [1.0, 0.0, 0.0, 1.0]
    verdicts = [
        tuple(Verdict(pattern[(i + j) % len(pattern)] if i % 3 else 1.0, True) for j in range(group_size))
        for i in range(num_prompts)
    ]
    return [dataclasses.replace(g, verdicts=v) for g, v in zip(groups, verdicts, strict=True)]


def updater(loaded, objective="pmd-mean", lr=0.0, tokens=10_000, drop=True, sampler=True, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(loaded.model.parameters(), lr=lr)
    return Updater(
        policy=Policy(loaded, 1.0, shared_prompt=True),
        objective=build_objective(ObjectiveSection(name=objective, **settings)),
        safe_step=SafeStep(optimizer, max_grad_norm=1e9, max_bad_steps=3),
        schedule=Schedule(lr, 100, "constant"),
        runtime=Runtime(torch.device("cpu")),
        tokens_per_microbatch=tokens,
        drop_zero_signal=drop,
        anchor_from_sampler=sampler,
    )


SQUARES_AND_LISTS = ("pmd-mean", "tpo", "lpo")


def gradient(loaded):
    return torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None])


def weights(loaded):
    return torch.cat([p.detach().flatten() for p in loaded.model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pmd-mean", "pmd-part", "grpo", "dapo", "gspo", "reinforce", "tpo", "lpo"])
def test_gradient_does_not_depend_on_micro_batches_order_or_dropping(nano, objective):
    groups = graded(nano)
    results = []
    for tokens, drop, order in ((10_000, True, 1), (10_000, False, 1), (40, False, 1), (1, True, -1)):
        one = updater(nano, objective, tokens=tokens, drop=drop, **({"tau": 0.5} if "pmd" in objective else {}))
        report = one.run(make_batch(one.objective, groups[::order]), num_updates=1, first_update=0, seed=0)
        results.append((gradient(nano), report.means["loss/objective"].value, report.counts.dropped_groups))
    for other, loss, _ in results[1:]:
        assert float((other - results[0][0]).norm() / results[0][0].norm()) < 1e-5
        assert loss == pytest.approx(results[0][1], rel=1e-4, abs=1e-6)
    assert results[0][2] == 2, "two of six groups are uniform"
    assert results[1][2] == 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pmd-mean", "pmd-part", "grpo", "tpo", "lpo"])
def test_groups_of_unequal_sizes_keep_their_own_baselines(nano, objective):
    """A step on groups of 4, 3, 2 and 1 is the mean over sequences of the steps on each of them."""
    groups = [
        dataclasses.replace(group, completions=group.completions[:size], verdicts=group.verdicts[:size])
        for group, size in zip(graded(nano)[1:], (4, 3, 2, 1), strict=False)
    ]

    def step(chosen):
        one = updater(nano, objective)
        one.run(make_batch(one.objective, chosen), num_updates=1, first_update=0, seed=0)
        return gradient(nano) if any(p.grad is not None for p in nano.model.parameters()) else 0.0

    alone = sum(len(group.completions) * step([group]) for group in groups) / sum(len(g.completions) for g in groups)
    together = step(groups)
    assert float(together.norm()) > 0
    assert torch.allclose(together, alone, atol=1e-5 * float(together.norm()))


def test_at_the_anchor_pmd_mean_is_rloo_with_its_own_scale(nano):
    groups = graded(nano)
    gradients = {}
    for name, settings in (("pmd-mean", {"tau": 0.3, "leave_one_out": True}), ("rloo", {})):
        one = updater(nano, name, **settings)
        one.run(make_batch(one.objective, groups), 1, 0, seed=0)
        gradients[name] = gradient(nano)
    assert float((gradients["pmd-mean"] - gradients["rloo"]).norm() / gradients["rloo"].norm()) < 1e-5


def test_sampler_anchor_and_recomputed_anchor_agree():
    moved = []
    for sampler in (True, False):
        loaded = make_nano()
        one = updater(loaded, lr=0.05, sampler=sampler, tau=0.5)
        one.run(make_batch(one.objective, graded(loaded)), num_updates=3, first_update=0, seed=0)
        moved.append(weights(loaded))
    assert float((moved[0] - moved[1]).norm() / (moved[0] - weights(make_nano())).norm()) < 1e-3


@pytest.mark.slow
def test_a_batch_that_brings_its_anchor_is_measured_from_it(monkeypatch):
    """From anchor to policy and on: the first update's gradient is that of a second update with the same anchor."""
    loaded = make_nano()
    groups = graded(loaded)
    one = updater(loaded, lr=0.05, tau=0.5)
    batch = one.make_batch(groups)
    anchors = [tuple(torch.from_numpy(c.logp_gen) for c in group.completions) for group in groups]
    one.run(batch, num_updates=1, first_update=0, seed=0)
    report = one.run(one.make_batch(groups, anchors), num_updates=1, first_update=0, seed=0)
    stale = gradient(loaded)
    assert report.max_sampler_gap is None  # nothing can be compared: the policy is not the anchor
    assert report.counts.dropped_groups == 0  # groups without signal pull back to it

    twice = make_nano()
    two = updater(twice, lr=0.05, tau=0.5)
    both = Batch(two.make_batch(groups).groups * 2)
    cut = Batch.minibatches
    in_order = list(range(2 * len(groups)))
    monkeypatch.setattr(Batch, "minibatches", lambda self, num, _order: cut(self, num, in_order))
    two.run(both, num_updates=2, first_update=0, seed=0)
    assert torch.allclose(stale, gradient(twice), atol=1e-5 * float(stale.norm()))
    assert torch.allclose(weights(loaded), weights(twice), atol=1e-6)


def test_the_version_counts_steps_that_moved_the_weights(nano):
    groups = graded(nano)
    even = [dataclasses.replace(group, verdicts=tuple(Verdict(1.0, True) for _ in group.verdicts)) for group in groups]
    one = updater(nano, lr=0.01)
    one.run(one.make_batch(even), num_updates=2, first_update=0, seed=0)
    assert one.version == 0
    one.run(one.make_batch(groups), num_updates=2, first_update=0, seed=0)
    assert one.version == 2


@pytest.mark.slow
def test_the_anchor_stays_fixed_over_the_phase():
    """With the anchor fixed, repeated full-batch steps converge to A = tau s; with a moving one they would not stop."""
    loaded = make_nano(eos_bias=0.0)
    groups = graded(loaded, num_prompts=1, rewards=[1.0, 0.0])
    groups = [dataclasses.replace(groups[0], verdicts=tuple(Verdict(float(j % 2), bool(j % 2)) for j in range(4)))]
    one = updater(loaded, lr=0.02, tau=1.0, sampler=False)
    batch = Batch(tuple(g for _ in range(60) for g in make_batch(one.objective, groups).groups))
    one.run(batch, num_updates=60, first_update=0, seed=0)
    from heliostat.train.update.mirror_metrics import sequence_log_ratios

    log_ratio, advantage, _ = sequence_log_ratios(one.policy, batch, 1, 10_000, one.runtime)
    assert abs(log_ratio - advantage).max() < 0.15
    assert abs(advantage).max() > 0.4


# -- trajectories


def graded_trajectories(loaded):
    groups = trajectories(loaded)
    return [
        dataclasses.replace(g, verdicts=tuple(Verdict(float(j % 2), bool(j % 2)) for j in range(len(g.completions))))
        for g in groups
    ]


@pytest.mark.slow
def test_gaps_by_turn_do_not_depend_on_micro_batches_and_average_to_the_whole(nano):
    groups, found = graded_trajectories(nano), []
    for tokens in (10_000, 40, 1):
        one = updater(nano, tokens=tokens, tau=0.5)
        moments = one.run(make_batch(one.objective, groups), num_updates=1, first_update=0, seed=0).mismatch
        found.append({key: mean for key, mean in moments.items() if key.startswith("agent/sampler_gap:")})
    assert sum(mean.count for mean in found[0].values()) == sum(group.num_tokens for group in groups)
    assert found[0]["agent/sampler_gap:2"].count > 0
    for key, mean in found[0].items():
        assert mean.value < 1e-5
        for other in found[1:]:
            assert other[key].count == mean.count
            assert other[key].value == pytest.approx(mean.value, abs=2e-6)


@pytest.mark.slow
def test_log_ratios_of_turns_are_those_of_their_trajectories(nano):
    from heliostat.train.update.mirror_metrics import sequence_log_ratios

    groups, seen = graded_trajectories(nano), {}
    one = updater(nano, lr=0.05, tau=0.5)
    batch = make_batch(one.objective, groups)
    one.run(batch, num_updates=1, first_update=0, seed=0)

    def on_row(row, log_ratio):
        seen[id(row.completion)] = log_ratio

    whole, *_ = sequence_log_ratios(one.policy, batch, len(groups), 40, one.runtime, on_row)
    members = [(group.prompt, completion) for group in groups for completion in group.completions]
    summed = []
    for member in members:
        parts = [float(values.sum()) for _, values in pieces(member, seen[id(member[1])])]
        assert len(parts) == len(member[1].turns)
        summed.append(sum(parts))
    assert sorted(summed) == pytest.approx(sorted(whole), abs=1e-5)
    assert abs(whole).max() > 0.01


def poison(loaded):
    next(iter(loaded.model.parameters())).data[:] = float("nan")


def test_non_finite_steps_are_skipped_counted_and_end_the_run(nano):
    groups = graded(nano)
    one = updater(nano, lr=0.1)
    batch = make_batch(one.objective, groups)
    clean = weights(nano)
    state = copy.deepcopy(nano.model.state_dict())
    poison(nano)
    assert one.run(batch, 1, 0, seed=0).bad_steps == 1
    assert one.run(batch, 1, 0, seed=0).bad_steps == 1
    nano.model.load_state_dict(state)
    assert one.run(batch, 1, 0, seed=0).bad_steps == 0, "a good step in between starts the count again"
    assert not torch.equal(weights(nano), clean)
    poison(nano)
    one.run(batch, 1, 0, seed=0)
    one.run(batch, 1, 0, seed=0)
    with pytest.raises(TrainingDiverged, match="3 updates in a row"):
        one.run(batch, 1, 0, seed=0)


def test_an_infinite_gradient_alone_is_skipped_too(nano):
    one = updater(nano, lr=0.1)
    before = weights(nano)
    hook = nano.head.projection.weight.register_hook(lambda grad: grad * float("inf"))
    report = one.run(make_batch(one.objective, graded(nano)), 1, 0, seed=0)
    hook.remove()
    assert report.bad_steps == 1
    torch.testing.assert_close(weights(nano), before, rtol=0, atol=0)


def test_groups_without_any_signal_leave_the_weights_alone(nano):
    groups = [dataclasses.replace(g, verdicts=tuple(Verdict(1.0, True) for _ in g.completions)) for g in graded(nano)]
    optimizer = torch.optim.AdamW(nano.model.parameters(), lr=0.1)
    one = updater(nano, lr=0.1, optimizer=optimizer)
    one.run(make_batch(one.objective, graded(nano)), 1, 0, seed=0)
    before = weights(nano)
    one.run(make_batch(one.objective, groups), 1, 0, seed=0)
    torch.testing.assert_close(weights(nano), before, rtol=0, atol=0)


def test_the_sampler_gap_is_measured_on_the_fresh_policy(nano):
    one = updater(nano)
    report = one.run(make_batch(one.objective, graded(nano)), 1, 0, seed=0)
    assert 0 < report.max_sampler_gap < 1e-4
    poisoned = [
        dataclasses.replace(
            g, completions=tuple(dataclasses.replace(c, logp_gen=c.logp_gen - 0.5) for c in g.completions)
        )
        for g in graded(nano)
    ]
    report = one.run(make_batch(one.objective, poisoned), 1, 0, seed=0)
    assert report.max_sampler_gap == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "drop"), [("pmd-mean", True), *((name, False) for name in SQUARES_AND_LISTS)])
def test_rounding_in_the_anchor_is_not_a_gradient(nano, objective, drop):
    """Without any signal nothing moves, even under Adam, whose steps do not shrink with the gradient."""
    groups = [dataclasses.replace(g, verdicts=tuple(Verdict(0.0, False) for _ in g.completions)) for g in graded(nano)]
    one = updater(nano, objective, lr=0.1, drop=drop, optimizer=torch.optim.AdamW(nano.model.parameters(), lr=0.1))
    before = weights(nano)
    one.run(make_batch(one.objective, groups), num_updates=4, first_update=0, seed=0)
    torch.testing.assert_close(weights(nano), before, rtol=0, atol=0)


def test_unshuffled_updates_take_the_groups_in_the_given_order(nano):
    """The second of two updates on [a, b] is an update on b; two phases of one update each give the same weights."""
    first, second = graded(nano)[1:3]
    start = copy.deepcopy(nano.model.state_dict())
    by_seed = []
    for seed in (0, 1):
        nano.model.load_state_dict(start)
        ours = updater(nano, "reinforce", lr=0.1)
        ours.run(make_batch(ours.objective, [first, second]), 2, first_update=0, seed=seed, shuffle=False)
        by_seed.append(weights(nano))
    nano.model.load_state_dict(start)
    ours = updater(nano, "reinforce", lr=0.1)
    for group in (first, second):
        ours.run(make_batch(ours.objective, [group]), 1, first_update=0, seed=0)
    assert torch.equal(*by_seed), "the seed has no say"
    assert torch.allclose(by_seed[0], weights(nano), atol=1e-6)
    nano.model.load_state_dict(start)
    ours = updater(nano, "reinforce", lr=0.1)
    ours.run(make_batch(ours.objective, [second, first]), 2, first_update=0, seed=0, shuffle=False)
    assert not torch.allclose(by_seed[0], weights(nano), atol=1e-6)

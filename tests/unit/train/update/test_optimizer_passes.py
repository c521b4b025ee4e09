"""Every optimizer with every objective; and what the extra passes hand over is exact, however it is packed."""

import copy

import pytest
import torch

from heliostat.config import ConfigError, OptimizerSection
from heliostat.objectives import objective_names
from heliostat.optim import Rank1NaturalGradient, SkippedStepWarning, build_optimizer, optimizer_names
from heliostat.optim.precision.master_copies import MASTER
from heliostat.train.update.updater import make_batch
from tests.support.nano import make_nano
from tests.unit.train.update.test_updater import graded, updater, weights

OURS = {
    "rank1": {"damping": 1.0, "num_scores": 2},
    "eva": {"damping": 1.0},
    "ring": {"damping": 0.1, "statistics_every": 1},
    "reng": {"rho": 0.05},
    "rkalman": {"num_scores": 2},
    "kronecker-sum": {},
    "kronecker-product": {},
}


def optimizer_of(name, loaded, lr=1e-3, **settings):
    return build_optimizer(OptimizerSection(name=name, lr=lr, **{**OURS[name], **settings}), loaded.model)


def one_update(name, loaded, groups, objective="pmd-mean", tokens=10_000, num_updates=1, **settings):
    optimizer = optimizer_of(name, loaded, **settings)
    one = updater(loaded, objective, lr=1e-3, tokens=tokens, optimizer=optimizer)
    return one.run(make_batch(one.objective, groups), num_updates, 0, seed=3)


def test_every_optimizer_of_a_recipe_is_listed_here():
    assert set(OURS) == set(optimizer_names()) - {"adamw", "sgd"}


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_objective_trains(name):
    loaded = make_nano()
    groups = graded(loaded, num_prompts=3)
    start = copy.deepcopy(loaded.model.state_dict())
    for objective in objective_names():
        loaded.model.load_state_dict(start)
        before = weights(loaded)
        report = one_update(name, loaded, groups, objective)
        assert report.bad_steps == 0, objective
        assert bool(torch.isfinite(weights(loaded)).all()), objective
        assert not torch.equal(weights(loaded), before), objective


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_the_step_does_not_depend_on_packing(name):
    moved = []
    for tokens in (10_000, 40):
        loaded = make_nano()
        groups, before = graded(loaded, num_prompts=3), weights(loaded)
        one_update(name, loaded, groups, tokens=tokens, **({"radius": 1.0} if name == "reng" else {}))
        moved.append(weights(loaded) - before)
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 2e-2  # AdamW's first step is a sign


@pytest.mark.slow
def test_scores_are_those_of_whole_completions():
    loaded, other = make_nano(), make_nano()
    groups = graded(loaded, num_prompts=3)
    one_update("rank1", loaded, groups, num_scores=12, momentum=0.0)
    one = updater(other, "pmd-mean", lr=0.0)
    batch = make_batch(one.objective, groups)
    one.run(batch, 1, 0, seed=3)  # leaves the gradient in place
    optimizer = Rank1NaturalGradient(other.model.parameters(), lr=1e-3, damping=1.0, num_scores=12)
    from heliostat.train.logprobs.packing import rows_of

    signal = [group for group in batch.groups if group.has_signal]
    rows = rows_of(signal)
    for index in range(12):
        with optimizer.score():
            one.policy.log_probs([rows[index % len(rows)]]).sum().backward()
    if len(rows) == 12:
        optimizer.step()
        difference = (weights(loaded) - weights(other)).norm() / (weights(other) - weights(make_nano())).norm()
        assert float(difference) < 1e-4


@pytest.mark.slow
def test_the_second_point_keeps_the_anchor_of_the_first():
    """At the anchor PMD's own square has no gradient but a curvature, which both forms of H g must see."""
    moved = {}
    for mode, settings in (("finite-difference", {"radius": 1e-3}), ("double-backward", {})):
        loaded = make_nano(scale=2.0)
        groups, before = graded(loaded, num_prompts=3), weights(loaded)
        one_update("reng", loaded, groups, base="sgd", rho=1.0, mode=mode, **settings)
        moved[mode] = weights(loaded) - before
    plain = make_nano(scale=2.0)
    groups, before = graded(plain, num_prompts=3), weights(plain)
    one_update("reng", plain, groups, base="sgd", rho=0.0)
    penalty = (moved["double-backward"] - (weights(plain) - before)).norm()
    assert float((moved["finite-difference"] - moved["double-backward"]).norm() / penalty) < 0.05


@pytest.mark.slow
def test_extra_forwards_are_counted():
    counted = {}
    for name in ("kronecker-sum", "rank1", "ring", "reng"):
        loaded = make_nano()
        groups = [group for group in graded(loaded, num_prompts=3) if len({v.reward for v in group.verdicts}) > 1]
        counted[name] = one_update(name, loaded, groups).counts.rows
    base = counted["kronecker-sum"]
    assert counted == {"kronecker-sum": base, "rank1": base + 2, "ring": 2 * base, "reng": 2 * base}


def test_a_step_that_the_optimizer_skips_is_a_bad_step():
    loaded = make_nano()
    groups, before = graded(loaded, num_prompts=3), weights(loaded)
    optimizer = optimizer_of("rank1", loaded, num_scores=1)
    one = updater(loaded, "pmd-mean", lr=1e-3, optimizer=optimizer)
    batch = make_batch(one.objective, groups)
    real = one.policy.log_probs

    def broken_in_the_extra_pass(rows):
        return real(rows) * (float("nan") if len(rows) == 1 else 1.0)

    one.policy.log_probs = broken_in_the_extra_pass
    with pytest.warns(SkippedStepWarning):
        report = one.run(batch, 1, 0, seed=3)
    assert report.bad_steps == 1
    assert torch.equal(weights(loaded), before)


def test_bad_settings_and_what_short_weights_cannot_do_are_refused():
    loaded = make_nano()
    with pytest.raises(ConfigError, match=r"optimizer\.damping must be positive"):
        optimizer_of("rank1", loaded, damping=0.0)
    loaded.model.bfloat16()
    with pytest.raises(ConfigError, match=r"optimizer\.mode 'finite-difference'.*or train float32 weights"):
        optimizer_of("reng", loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_the_extra_passes_of_bfloat16_weights_are_those_of_float32_up_to_its_rounding(name):
    """One update from the same weights: the move of the float32 copies."""
    settings = {"mode": "double-backward"} if name == "reng" else {}
    moved = []
    for short in (True, False):
        loaded = make_nano()
        groups = graded(loaded, num_prompts=3)
        loaded.model.bfloat16()
        if not short:
            loaded.model.float()
        optimizer, before = optimizer_of(name, loaded, **settings), weights(loaded).float()
        one = updater(loaded, "pmd-mean", lr=1e-3, tokens=40, optimizer=optimizer)
        one.run(make_batch(one.objective, groups), 1, 0, seed=3)
        held = [optimizer.state[p].get(MASTER, p) for p in loaded.model.parameters()]
        moved.append(torch.cat([tensor.detach().reshape(-1) for tensor in held]) - before)
    # AdamW's first step is a sign, which rounding decides where a gradient is near 0; it moves most of these two.
    bound = 0.25 if name in ("eva", "reng") else 0.1
    assert 0 < float((moved[0] - moved[1]).norm() / moved[1].norm()) < bound

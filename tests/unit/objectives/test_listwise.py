"""Listwise objectives against dense references: tables of groups, written out with plain softmaxes."""

import dataclasses
import math

import pytest
import torch
from ragged import build, coefficients, random_batch, run

from heliostat.config import ConfigError
from heliostat.types import TokenBatch

LENGTHS = (3, 1, 5, 2, 4, 2, 6, 1)
ADVANTAGE = [1.5, -0.5, -0.5, -0.5, 0.2, -0.6, 0.9, -0.5]


def batch(drift=0.3, advantage=ADVANTAGE, seed=0):
    """Two groups of four completions, one token each axis ragged."""
    return random_batch(seed, lengths=LENGTHS, drift=drift, advantage=advantage)


def anchored(tokens, logp_new):
    return dataclasses.replace(tokens, logp_old=logp_new.detach())


def table(tokens, logp):
    """Sums by completion as a table of (group, completion)."""
    return tokens.sum_by_sequence(logp.detach()).view(2, 4)


def by_sequence(tokens, per_token):
    """The one coefficient that all tokens of a completion share, as a table."""
    rows = torch.split(per_token, tokens.num_tokens.tolist())
    for row in rows:
        assert torch.allclose(row, row[:1].expand_as(row))
    return torch.stack([row[0] for row in rows]).view(2, 4)


def dense_target(tokens, logits="sum"):
    length = tokens.num_tokens.view(2, 4) if logits == "mean" else 1
    return torch.softmax(table(tokens, tokens.logp_old) / length + tokens.advantage.view(2, 4), dim=1)


def test_tpo_is_the_cross_entropy_of_its_paper_up_to_the_targets_entropy():
    """The loss as its paper sketches it, -(q log p).sum(-1).mean(), differentiated by autograd."""
    logp_new, tokens = batch()
    dense = logp_new.detach().clone().requires_grad_()
    log_p = torch.log_softmax(tokens.sum_by_sequence(dense).view(2, 4), dim=1)
    q = dense_target(tokens)
    published = -(q * log_p).sum(-1).mean()
    (expected,) = torch.autograd.grad(published, dense)
    output, gradient = run(build("tpo"), logp_new, tokens)
    entropy = -(q * q.log()).sum(-1).mean()
    assert output.loss.item() == pytest.approx((published - entropy).item(), abs=1e-12)
    assert torch.allclose(gradient, expected, atol=1e-14)


def test_tpo_over_mean_logits_shares_a_completions_coefficient_over_its_tokens():
    logp_new, tokens = batch()
    found = by_sequence(tokens, coefficients(build("tpo", logits="mean"), logp_new, tokens))
    length = tokens.num_tokens.view(2, 4)
    policy = torch.softmax(table(tokens, logp_new) / length, dim=1)
    assert torch.allclose(found, 4 * (dense_target(tokens, "mean") - policy) / length)


def test_tpo_has_no_gradient_where_the_policy_matches_the_target():
    """A policy one token of which carries the tilt, and a constant of the group that cancels."""
    tokens = batch()[1]
    first = torch.cat([torch.zeros(1), tokens.num_tokens.cumsum(0)[:-1]]).long()
    matched = tokens.logp_old.clone()
    matched[first] += tokens.advantage - torch.tensor([3.0, 2.0]).repeat_interleave(4)
    output, gradient = run(build("tpo"), matched.requires_grad_(), tokens)
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_tpo_at_the_anchor_is_the_groups_policy_gradient_for_a_large_eta():
    logp_new, tokens = batch()
    tokens = dataclasses.replace(anchored(tokens, logp_new), advantage=tokens.advantage / 1e6)
    tilt, policy = tokens.advantage.view(2, 4), torch.softmax(table(tokens, logp_new), dim=1)
    expected = 4 * policy * (tilt - (policy * tilt).sum(1, keepdim=True))
    found = by_sequence(tokens, coefficients(build("tpo"), logp_new, tokens))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_tpo_with_equal_probabilities_is_reinforce_on_standardised_rewards_for_a_large_eta():
    logp = torch.full((8,), -2.0, dtype=torch.float64, requires_grad=True)
    group, count = torch.arange(8) // 4, torch.ones(8, dtype=torch.int64)
    u = build("tpo").advantages(torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)).repeat(2)
    parts = {"sequence": torch.arange(8), "num_tokens": count, "logp_old": logp.detach(), "logp_gen": logp.detach()}
    tilted = TokenBatch(advantage=u / 1e6, group=group, **parts)
    plain = TokenBatch(advantage=u, group=group, **parts)
    found = coefficients(build("tpo"), logp, tilted) * 1e6
    assert torch.allclose(found, coefficients(build("reinforce"), logp, plain), rtol=1e-5)
    assert torch.allclose(coefficients(build("tpo"), logp, plain), coefficients(build("lpo"), logp, plain))


@pytest.mark.parametrize("name", ["tpo", "lpo"])
def test_two_completions_are_a_logistic_regression(name):
    logp_new, tokens = random_batch(1, lengths=(2, 3), advantage=[0.8, -0.8])
    new, old = (tokens.sum_by_sequence(logp) for logp in (logp_new, tokens.logp_old))
    margin, offset = (new[0] - new[1], old[0] - old[1]) if name == "tpo" else (new[0] - old[0] - new[1] + old[1], 0.0)
    label = torch.as_tensor(offset + 1.6).sigmoid()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, label.detach())
    (expected,) = torch.autograd.grad(loss, logp_new, retain_graph=True)
    assert torch.allclose(run(build(name), logp_new, tokens)[1], expected, atol=1e-14)


@pytest.mark.parametrize("projection", ["forward", "reverse"])
def test_lpo_is_the_divergence_between_target_and_ratios_by_autograd(projection):
    logp_new, tokens = batch()
    dense = logp_new.detach().clone().requires_grad_()
    log_p = torch.log_softmax(tokens.sum_by_sequence(dense - tokens.logp_old).view(2, 4), dim=1)
    log_w = torch.log_softmax(tokens.advantage.view(2, 4), dim=1)
    inner, other = (log_w, log_p) if projection == "forward" else (log_p, log_w)
    divergence = (inner.exp() * (inner - other)).sum(-1).mean()
    (expected,) = torch.autograd.grad(divergence, dense)
    output, gradient = run(build("lpo", projection=projection), logp_new, tokens)
    assert output.loss.item() == pytest.approx(divergence.item(), abs=1e-12)
    assert torch.allclose(gradient, expected, atol=1e-14)


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out", "standardized", "mean-normalized"])
def test_reverse_lpo_at_the_anchor_is_reinforce_with_its_baseline(baseline):
    """Also over tau; and forward is, as tau grows."""
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    logp_new, tokens = batch()
    lpo = build("lpo", projection="reverse", baseline=baseline, tau=0.7)
    tokens = dataclasses.replace(anchored(tokens, logp_new), advantage=lpo.advantages(rewards).repeat(2))
    reinforce = build("reinforce", baseline=baseline)
    plain = dataclasses.replace(tokens, advantage=reinforce.advantages(rewards).repeat(2))
    expected = coefficients(reinforce, logp_new, plain)
    assert torch.allclose(coefficients(lpo, logp_new, tokens) * 0.7, expected, atol=1e-13)
    soft = dataclasses.replace(plain, advantage=plain.advantage / 1e6)
    assert torch.allclose(coefficients(build("lpo"), logp_new, soft) * 1e6, expected, rtol=1e-4, atol=1e-5)


def test_forward_lpo_is_bounded_and_adds_up_to_nothing_where_the_policy_has_run_away():
    logp_new, tokens = batch(drift=20.0)
    found = by_sequence(tokens, coefficients(build("lpo"), logp_new, tokens))
    assert torch.allclose(found.sum(1), torch.zeros(2).double(), atol=1e-12)
    assert found.abs().max() <= 4
    assert found.abs().max() > 1


@pytest.mark.parametrize("projection", ["forward", "reverse"])
def test_lpo_does_not_care_for_a_constant_of_the_group_where_pmd_does(projection):
    """Log-ratios of R / tau + c are optimal for every c; pmd-mean has the one c = 0."""
    tokens = batch()[1]
    first = torch.cat([torch.zeros(1), tokens.num_tokens.cumsum(0)[:-1]]).long()
    for constant in (0.0, -1.5):
        matched = tokens.logp_old.clone()
        matched[first] += tokens.advantage + constant
        matched.requires_grad_()
        assert run(build("lpo", projection=projection), matched, tokens)[1].abs().max() < 1e-12
        regression = run(build("pmd-mean", tau=1.0), matched, tokens)[1].abs().max()
        assert regression == pytest.approx(-constant / 8, abs=1e-12)


def test_a_group_without_spread_is_neutral_at_the_anchor_and_a_pull_towards_it_afterwards():
    for name in ("tpo", "lpo"):
        assert not build(name).advantages(torch.full((4,), 0.1)).any()
        logp_new, tokens = batch(advantage=[0.0] * 8)
        assert not run(build(name), logp_new, anchored(tokens, logp_new))[1].any()
        found = by_sequence(tokens, coefficients(build(name), logp_new, tokens))
        moved = table(tokens, logp_new - tokens.logp_old)
        most, least = moved.argmax(1, keepdim=True), moved.argmin(1, keepdim=True)
        assert bool((found.gather(1, most) < 0).all())
        assert bool((found.gather(1, least) > 0).all())


@pytest.mark.parametrize("name", ["tpo", "lpo"])
def test_a_group_of_one_teaches_nothing(name):
    logp_new, tokens = random_batch(0, lengths=(3,), advantage=[0.0])
    output, gradient = run(build(name), logp_new, tokens)
    assert output.loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", ["tpo", "lpo"])
def test_groups_are_told_by_their_number_and_may_have_any_size_and_order(name):
    logp_new, tokens = batch()
    mixed = dataclasses.replace(tokens, group=torch.tensor([7, 2, 7, 2, 7, 9, 7, 7]))
    found = coefficients(build(name), logp_new, mixed)
    logits, anchor = (tokens.sum_by_sequence(logp) for logp in (logp_new.detach(), tokens.logp_old))
    for label in (2, 7, 9):
        member = mixed.group == label
        new, old, tilt = logits[member], anchor[member], tokens.advantage[member]
        policy, target = (new, old + tilt) if name == "tpo" else (new - old, tilt)
        expected = member.sum() * (torch.softmax(target, 0) - torch.softmax(policy, 0))
        assert torch.allclose(found[member[tokens.sequence]], expected.repeat_interleave(tokens.num_tokens[member]))


@pytest.mark.parametrize("name", ["tpo", "lpo"])
def test_long_answers_in_a_short_dtype_stay_finite(name):
    """4,000 nats apart: a probability that was formed and not a log-softmax would be 0 / 0."""
    total = torch.tensor([-4000.0, -4.0, -900.0, -3.0])
    for dtype in (torch.float32, torch.bfloat16):
        logp_new = total.clone().to(dtype).requires_grad_()
        plain = TokenBatch(
            sequence=torch.arange(4),
            num_tokens=torch.ones(4, dtype=torch.int64),
            advantage=torch.tensor([1.0, 1, -1, -1]).to(dtype),
            logp_old=(total + 1).to(dtype),
            logp_gen=total.to(dtype),
            group=torch.zeros(4, dtype=torch.int64),
        )
        output, gradient = run(build(name), logp_new, plain)
        assert output.loss.isfinite()
        assert gradient.isfinite().all()
        assert gradient.any()
        assert gradient.dtype == dtype


def test_tpo_standardises_with_the_populations_deviation_and_any_scale():
    advantages = build("tpo", eta=2.0).advantages
    assert advantages(torch.tensor([1.0, 0, 0, 0])).tolist() == pytest.approx(
        [math.sqrt(3) / 2] + [-1 / math.sqrt(3) / 2] * 3
    )
    assert torch.equal(advantages(torch.tensor([1e-3, 0, 0, 0])), advantages(torch.tensor([1e3, 0, 0, 0])))


def test_a_batch_that_does_not_name_its_groups_is_refused():
    logp_new, tokens = batch()
    with pytest.raises(ValueError, match=r"'tpo' compares .* so TokenBatch\.group must name the group of each"):
        build("tpo").loss(logp_new, dataclasses.replace(tokens, group=None), 8.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tpo", {"eta": 0.0}, "eta must be a positive finite number"),
        ("lpo", {"tau": math.inf}, "tau must be a positive finite number"),
        ("lpo", {"length_normalization": "sequence"}, "'lpo' would no longer fit its target; use logits = 'mean'"),
        ("lpo", {"projection": "sideways"}, "projection"),
    ],
)
def test_impossible_settings_are_refused(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **settings)

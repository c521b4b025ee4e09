"""Explicit penalties: what they share with PMD-mean, and where they stop."""

import math

import pytest
import torch
from enumerated import lambert_ratio, optimum
from ragged import build, coefficients, random_batch, run

from heliostat.types import TokenBatch

REWARDS = torch.tensor([1.0, 0.0, 0.3, 0.9, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out", "standardized"])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_without_decay_it_is_reinforce_on_any_baseline(baseline, level):
    decay = build("log-ratio-decay", decay=0.0, baseline=baseline, level=level)
    reinforce = build("reinforce", baseline=baseline)
    assert torch.equal(decay.advantages(REWARDS), reinforce.advantages(REWARDS))
    logp_new, tokens = random_batch(1)
    assert torch.allclose(run(decay, logp_new, tokens)[1], run(reinforce, logp_new, tokens)[1], atol=1e-15)


def test_decay_levels_agree_on_one_token_and_differ_on_more():
    one = random_batch(1, lengths=(1, 1, 1))
    more = random_batch(1, lengths=(2, 1, 3))
    sequence, token = build("log-ratio-decay"), build("log-ratio-decay", level="token")
    assert torch.allclose(run(sequence, *one)[1], run(token, *one)[1], atol=1e-15)
    assert not torch.allclose(run(sequence, *more)[1], run(token, *more)[1], atol=1e-3)


def test_decay_by_hand():
    """One sequence, log-ratios .1 and .2, A = 2, decay 1/2: sequence pull .15 on both, token pulls .05 and .1."""
    logp_old = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    logp_new = torch.tensor([-0.9, -1.8], dtype=torch.float64, requires_grad=True)
    tokens = TokenBatch(
        torch.zeros(2, dtype=torch.int64), torch.tensor([2]), torch.tensor([2.0]).double(), logp_old, logp_old
    )
    objective = build("log-ratio-decay", decay=0.5)
    output, _ = run(objective, logp_new, tokens)
    assert output.loss.item() == pytest.approx(2 * 2.7 + 0.25 * 0.09)
    assert coefficients(objective, logp_new, tokens).tolist() == pytest.approx([1.85, 1.85])
    objective = build("log-ratio-decay", decay=0.5, level="token")
    output, _ = run(objective, logp_new, tokens)
    assert output.loss.item() == pytest.approx(2 * 2.7 + 0.25 * 0.05)
    assert coefficients(objective, logp_new, tokens).tolist() == pytest.approx([1.95, 1.9])


def test_kl_chi2_at_the_anchor_is_pmd_mean_and_its_penalties_are_zero():
    logp_new, tokens = random_batch(3, drift=0.0)
    output, gradient = run(build("kl-chi2", tau=0.3, chi2_weight=2.0), logp_new, tokens)
    assert torch.allclose(gradient, run(build("pmd-mean"), logp_new, tokens)[1], atol=1e-14)
    assert output.loss.item() == pytest.approx(-tokens.advantage.mean().item())


def test_kl_chi2_value_is_reward_minus_the_two_divergences():
    """On an enumerated population the control variates vanish: loss = -<pi, A> + tau KL + tau lambda/2 chi^2."""
    tau, weight = 0.4, 0.7
    objective = build("kl-chi2", tau=tau, chi2_weight=weight)
    logp_new = torch.log_softmax(torch.tensor([0.3, -0.5, 1.0, 0.0, 0.2], dtype=torch.float64), dim=0)
    logp_old = torch.full((5,), -math.log(5), dtype=torch.float64)
    advantage = objective.advantages(REWARDS)
    tokens = TokenBatch(torch.arange(5), torch.ones(5, dtype=torch.int64), advantage, logp_old, logp_old)
    policy = logp_new.exp()
    kl = (policy * (logp_new - logp_old)).sum()
    chi2 = (5 * policy.square()).sum() - 1
    expected = -(policy * advantage).sum() + tau * kl + 0.5 * tau * weight * chi2
    output = objective.loss(logp_new.requires_grad_(), tokens, 5.0)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-14)


@pytest.mark.parametrize("tau", [0.2, 0.5, 2.0])
def test_kl_chi2_at_matched_lambda_has_pmd_means_optimum(tau):
    expected, lam = lambert_ratio(REWARDS, tau)
    assert torch.allclose(optimum(build("kl-chi2", tau=tau, chi2_weight=lam), REWARDS).exp(), expected, atol=1e-6)


def test_kl_alone_has_the_exponential_tilt():
    tilt = torch.softmax(REWARDS / 0.5, dim=0) * len(REWARDS)
    assert torch.allclose(optimum(build("kl-chi2", tau=0.5, chi2_weight=0.0), REWARDS).exp(), tilt, atol=1e-6)


def test_a_sequence_ratio_that_overflows_float32_is_an_infinite_loss():
    logp_new = torch.tensor([-1.0, -1.0], requires_grad=True)
    tokens = TokenBatch(
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([2]),
        torch.ones(1),
        torch.full((2,), -60.0),
        torch.full((2,), -60.0),
    )
    assert math.isinf(build("kl-chi2").loss(logp_new, tokens, 1.0).loss.item())


def kimi_batch(log_ratios, advantage):
    count = len(log_ratios)
    logp_old = torch.full((count,), -2.0, dtype=torch.float64)
    logp_new = (logp_old + torch.tensor(log_ratios, dtype=torch.float64)).requires_grad_()
    tokens = TokenBatch(
        torch.zeros(count, dtype=torch.int64),
        torch.tensor([count]),
        torch.tensor([advantage], dtype=torch.float64),
        logp_old,
        logp_old,
    )
    return logp_new, tokens


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_kimi_k25_masks_by_log_ratio_whatever_the_sign_and_still_pulls_back(advantage):
    log_ratios = [-0.6, -0.4, 0.0, 0.2, 0.4]
    logp_new, tokens = kimi_batch(log_ratios, advantage)
    objective = build("kimi-k2.5", tau=0.1, min_log_ratio=-0.5, max_log_ratio=0.3)
    output, gradient = run(objective, logp_new, tokens)
    inside = [0.0, math.exp(-0.4), 1.0, math.exp(0.2), 0.0]
    expected = [keep * advantage - 0.2 * drift for keep, drift in zip(inside, log_ratios, strict=True)]
    assert gradient.tolist() == pytest.approx([-value / 5 for value in expected])
    clip = [math.exp(-0.5), math.exp(-0.4), 1.0, math.exp(0.2), math.exp(0.3)]
    loss = sum(0.1 * drift**2 - value * advantage for drift, value in zip(log_ratios, clip, strict=True)) / 5
    assert output.loss.item() == pytest.approx(loss)
    assert output.metrics["loss/clipped"].total == 2.0


def test_a_token_that_is_not_pushed_is_not_counted_as_clipped():
    logp_new, tokens = kimi_batch([-2.0, 2.0, 0.1], advantage=0.0)
    output, _ = run(build("kimi-k2.5"), logp_new, tokens)
    assert output.metrics["loss/clipped"].total == 0.0


def test_kimi_k25_limits():
    logp_new, tokens = random_batch(6, drift=0.0)
    at_anchor = run(build("kimi-k2.5"), logp_new, tokens)[1]
    reinforce = run(build("reinforce", length_normalization="token"), logp_new, tokens)[1]
    assert torch.allclose(at_anchor, reinforce, atol=1e-14)
    logp_new, tokens = random_batch(6)
    wide = build("kimi-k2.5", tau=1e-12, min_log_ratio=-50.0, max_log_ratio=50.0)
    unclipped = build("cispo", clip_low=1.0, clip_high=1e9)
    assert torch.allclose(run(wide, logp_new, tokens)[1], run(unclipped, logp_new, tokens)[1], atol=1e-10)


def test_zero_signal_groups():
    for name in ("log-ratio-decay", "kl-chi2", "kimi-k2.5"):
        assert build(name).can_drop_zero_advantage_groups(first_update=True)
        assert not build(name).can_drop_zero_advantage_groups(first_update=False)
    assert build("log-ratio-decay", decay=0.0).can_drop_zero_advantage_groups(first_update=False)

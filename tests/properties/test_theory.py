"""What must hold for every old policy, reward and temperature, not only for those somebody thought of."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from heliostat.theory import pmd_baseline, pmd_mean, pmd_part

METHODS = (pmd_mean, pmd_part)
CHECKED = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def problems(draw):
    """Two to six actions with log-probabilities down to -60, rewards of any sign, tau over five decades."""
    num_actions = draw(st.integers(2, 6))
    logits = draw(st.lists(st.floats(-60, 0), min_size=num_actions, max_size=num_actions))
    rewards = draw(st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=num_actions, max_size=num_actions))
    tau = 10 ** draw(st.floats(-2.5, 2.5))
    logp = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    return logp, torch.tensor(rewards, dtype=torch.float64), tau


def same(first, second, atol=1e-9):
    # A log-ratio may be of size 1/tau, so the tolerance is relative to that.
    torch.testing.assert_close(first, second, rtol=1e-9, atol=atol)


@CHECKED
@given(problems(), st.floats(0.05, 20))
def test_the_certificate_holds_and_the_reward_never_falls(problem, length):
    logp, rewards, tau = problem
    lengths = torch.linspace(1.0, 1.0 + length, len(rewards), dtype=torch.float64)
    for step in (pmd_mean(None, rewards, tau, lengths, log_probs=logp), pmd_part(None, rewards, tau, log_probs=logp)):
        assert float(step.certificate.worst) < 1e-10
        assert float(step.gain) >= 0
        assert float(step.lam) >= 0
        assert float(step.chi2_share) <= 1 + 1e-12
        assert float(step.kl_new_old) >= 0
        assert float(step.kl_old_new) >= 0


@pytest.mark.slow
@CHECKED
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_actions_does_not_matter(problem, random):
    logp, rewards, tau = problem
    order = list(range(len(rewards)))
    random.shuffle(order)
    for method in METHODS:
        plain = method(None, rewards, tau, log_probs=logp)
        assert float(plain.chi2_share) >= 0  # unequal lengths can make it negative
        shuffled = method(None, rewards[order], tau, log_probs=logp[order])
        same(shuffled.log_ratio, plain.log_ratio[order])
        same(shuffled.lam, plain.lam)


@pytest.mark.slow
@CHECKED
@given(problems(), st.floats(0.01, 0.99), st.integers(0, 5))
def test_splitting_an_action_in_two_changes_no_mass(problem, share, which):
    logp, rewards, tau = problem
    which %= len(rewards)
    pieces = logp[which] + torch.tensor([share, 1 - share], dtype=torch.float64).log()
    split = torch.cat([logp[:which], pieces, logp[which + 1 :]])
    doubled = torch.cat([rewards[: which + 1], rewards[which:]])
    for method in METHODS:
        plain = method(None, rewards, tau, log_probs=logp)
        parts = method(None, doubled, tau, log_probs=split)
        ratios = parts.log_ratio
        same(ratios[which], ratios[which + 1])
        same(torch.cat([ratios[: which + 1], ratios[which + 2 :]]), plain.log_ratio)
        same(parts.lam, plain.lam)


@pytest.mark.slow
@CHECKED
@given(problems(), st.floats(-5, 5))
def test_shifting_all_rewards_changes_nothing(problem, shift):
    logp, rewards, tau = problem
    for method in METHODS:
        plain = method(None, rewards, tau, log_probs=logp)
        shifted = method(None, rewards + shift, tau, log_probs=logp)
        same(shifted.log_ratio, plain.log_ratio, atol=1e-9 / tau)
        same(shifted.gain, plain.gain)


@pytest.mark.slow
@CHECKED
@given(problems(), st.floats(0.01, 100))
def test_rewards_and_tau_have_one_unit(problem, scale):
    logp, rewards, tau = problem
    for method in METHODS:
        plain = method(None, rewards, tau, log_probs=logp)
        scaled = method(None, scale * rewards, scale * tau, log_probs=logp)
        same(scaled.log_ratio, plain.log_ratio, atol=1e-9 / tau)
        same(scaled.lam, plain.lam)


@CHECKED
@given(problems())
def test_ratios_follow_the_order_of_rewards(problem):
    logp, rewards, tau = problem
    for method in METHODS:
        ratios = method(None, rewards, tau, log_probs=logp).log_ratio[rewards.argsort()]
        assert (ratios.diff() >= -1e-11 * max(1.0, 1 / tau)).all()


@pytest.mark.slow
@CHECKED
@given(problems(), st.floats(0.05, 1.0))
def test_raising_one_reward_raises_that_action(problem, rise):
    logp, rewards, tau = problem
    better = rewards.clone()
    better[0] += rise
    for method in METHODS:
        before, after = (method(None, r, tau, log_probs=logp) for r in (rewards, better))
        assert after.log_ratio[0] >= before.log_ratio[0] - 1e-11 * max(1.0, 1 / tau)


@pytest.mark.slow
@CHECKED
@given(problems(), st.floats(-1.0, 0.95))
def test_the_sign_of_lambda_is_that_of_the_room_under_the_partition(problem, position):
    """Baselines from below the mean (-1) through the mean (0) towards the log-partition (1) keep lambda positive."""
    logp, rewards, tau = problem
    mean = float((logp.exp() * rewards).sum())
    edge = tau * float((logp + rewards / tau).logsumexp(-1))
    baseline = mean + position * (edge - mean) if position > 0 else mean + position
    step = pmd_baseline(None, rewards, tau, baseline, log_probs=logp)
    room = (edge - baseline) / tau
    if room > 1e-9:
        assert float(step.lam) > 0
        assert float(step.certificate.worst) < 1e-9

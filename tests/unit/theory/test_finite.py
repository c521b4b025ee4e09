"""Sampling noise of one step: quoted numbers, brute force over every draw, and limits."""

import itertools
import math

import pytest
import torch

from heliostat.theory import binary_pmd_mean, binary_pmd_part, finite_pmd_mean, finite_pmd_part

TAUS = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
SUCCESS = torch.tensor([0.05, 0.2, 0.5], dtype=torch.float64)


def test_noise_of_the_log_odds_to_the_quoted_digits():
    """Full (not leave-one-out) baselines and losses weighted by what was sampled reproduce every quoted number."""
    mean, part = finite_pmd_mean(SUCCESS, TAUS, 16), finite_pmd_part(SUCCESS, TAUS, 16)
    quoted_mean = [[1.90, 1.15, 1.24], [1.24, 0.55, 0.42]]
    quoted_part = [[5.22, 1.72, 0.28], [1.90, 0.71, 0.25]]
    assert [[round(x, 2) for x in row] for row in mean.sd(mean.log_odds).tolist()] == quoted_mean
    assert [[round(x, 2) for x in row] for row in part.sd(part.log_odds).tolist()] == quoted_part


def test_at_tau_one_the_two_are_close_but_not_equal():
    mean, part = finite_pmd_mean(SUCCESS, 1.0, 16), finite_pmd_part(SUCCESS, 1.0, 16)
    ratio = mean.sd(mean.log_odds) / part.sd(part.log_odds)
    assert [round(x, 2) for x in ratio.tolist()] == [0.98, 0.97, 1.19]


@pytest.mark.slow
def test_the_reversal_at_one_half_needs_enough_rollouts():
    for num_rollouts, mean_is_quieter in ((4, True), (16, False), (64, False)):
        mean, part = finite_pmd_mean(0.5, 0.1, num_rollouts), finite_pmd_part(0.5, 0.1, num_rollouts)
        assert (float(mean.sd(mean.log_odds)) < float(part.sd(part.log_odds))) == mean_is_quieter


def test_target_noise_of_wrong_answers():
    mean, part = finite_pmd_mean(0.02, 0.01, 16), finite_pmd_part(0.02, 0.01, 16)
    assert round(float(mean.sd(mean.target_incorrect)), 1) == 3.5
    assert round(float(part.sd(part.target_incorrect)), 1) == 43.5
    assert float(mean.sd(mean.target_incorrect)) == pytest.approx(math.sqrt(0.02 * 0.98 / 16) / 0.01, rel=1e-3)
    jump = part.target_incorrect[0] - part.target_incorrect[1]
    assert float(jump) == pytest.approx(100 - math.log(16), rel=1e-9)
    # At small tau, with the policy still in place, PMD-part pushes wrong answers down and leaves correct ones alone.
    advantages = 0.01 * torch.stack([part.target_correct[4], part.target_incorrect[4]])
    assert 0 < float(advantages[0]) < 0.02
    assert float(advantages[1]) < -0.98


@pytest.mark.slow
def test_how_often_the_sampled_baseline_overshoots():
    part = finite_pmd_part(SUCCESS, 0.1, 16)
    shares = part.mean(part.over_partition)
    assert (round(float(shares.min()), 2), round(float(shares.max()), 2)) == (0.40, 0.56)
    # Between those three rates it ranges further, as counts jump over n p.
    around_one_sixteenth = torch.tensor([1 / 16 - 1e-6, 1 / 16 + 1e-6], dtype=torch.float64)
    finer = torch.cat([torch.linspace(0.05, 0.5, 46, dtype=torch.float64), around_one_sixteenth])
    part = finite_pmd_part(finer, 0.1, 16)
    shares = part.mean(part.over_partition)
    assert float(shares.min()) == pytest.approx(1 / 4, abs=0.05)
    assert float(shares.max()) == pytest.approx(2 / 3, abs=0.05)
    assert float(shares.mean()) == pytest.approx(0.48, abs=0.01)
    # Overshooting is what turns lambda negative, except where all agree and nothing moves.
    assert ((part.lam < 0) == (part.over_partition > 0))[:, :-1].all()
    success, taus = torch.linspace(0.005, 0.5, 34, dtype=torch.float64), torch.tensor([[0.05], [0.1], [0.2]])
    mean = finite_pmd_mean(success, taus, 16)
    assert float(mean.mean(mean.over_partition).max()) == pytest.approx(0.003, abs=2e-4)
    at_one = finite_pmd_mean(finer, 1.0, 16)
    assert float(at_one.mean(at_one.over_partition).mean()) == pytest.approx(0.18, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("method", [finite_pmd_mean, finite_pmd_part])
def test_every_draw_of_four_rollouts_by_brute_force(method, leave_one_out):
    """All 16 draws, each loss summed rollout by rollout and minimised on a grid of the one free log-odds."""
    p, tau, n = 0.3, 0.4, 4
    logits = torch.linspace(-14, 14, 280001, dtype=torch.float64)
    log_new = torch.stack([torch.nn.functional.logsigmoid(-logits), torch.nn.functional.logsigmoid(logits)])
    s = log_new - torch.tensor([[1 - p], [p]], dtype=torch.float64).log()
    mean, second = 0.0, 0.0
    for draw in itertools.product((0, 1), repeat=n):
        loss = torch.zeros_like(logits)
        for i, reward in enumerate(draw):
            pool = [r for j, r in enumerate(draw) if j != i] if leave_one_out else draw
            if method is finite_pmd_mean:
                baseline = sum(pool) / len(pool)
            else:
                baseline = tau * math.log(sum(math.exp(r / tau) for r in pool) / len(pool))
            loss += (s[reward] - (reward - baseline) / tau) ** 2
        best = float(logits[loss.argmin()])
        chance = math.prod(p if reward else 1 - p for reward in draw)
        mean, second = mean + chance * best, second + chance * best**2
    result = method(p, tau, n, leave_one_out=leave_one_out)
    assert float(result.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float(result.mean(result.log_odds)) == pytest.approx(mean, abs=1e-4)
    assert float(result.sd(result.log_odds)) == pytest.approx(math.sqrt(second - mean**2), abs=1e-4)


@pytest.mark.slow
def test_many_rollouts_approach_the_population_step():
    for finite, exact in ((finite_pmd_mean, binary_pmd_mean), (finite_pmd_part, binary_pmd_part)):
        target = math.log(0.3 / 0.7) + float(exact(0.3, 0.5).logit_gain)
        errors = []
        for num_rollouts in (16, 128, 1024):
            sample = finite(0.3, 0.5, num_rollouts)
            errors.append(abs(float(sample.mean(sample.log_odds)) - target))
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 5e-3
        assert float(sample.sd(sample.log_odds)) < 0.15


def test_leaving_one_out_of_the_mean_is_a_smaller_tau():
    n, tau = 8, 0.3
    left_out = finite_pmd_mean(0.4, tau, n, leave_one_out=True)
    rescaled = finite_pmd_mean(0.4, tau * (n - 1) / n, n)
    torch.testing.assert_close(left_out.log_odds, rescaled.log_odds, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(left_out.target_incorrect, rescaled.target_incorrect, rtol=1e-12, atol=1e-13)


def test_large_tau_makes_the_two_the_same():
    mean, part = finite_pmd_mean(0.3, 1e3, 8), finite_pmd_part(0.3, 1e3, 8)
    torch.testing.assert_close(mean.log_odds, part.log_odds, rtol=0, atol=1e-6)


def test_draws_that_agree_leave_the_policy_alone():
    for method in (finite_pmd_mean, finite_pmd_part):
        for leave_one_out in (False, True):
            sample = method(0.2, 0.05, 4, leave_one_out=leave_one_out)
            assert float(sample.log_odds[0]) == pytest.approx(math.log(0.25), abs=1e-14)
            assert float(sample.log_odds[-1]) == pytest.approx(math.log(0.25), abs=1e-14)
            assert not sample.log_odds.isnan().any()


@pytest.mark.parametrize(
    ("p", "tau", "n", "leave_one_out", "message"),
    [
        (0.0, 0.1, 4, False, "success"),
        (0.5, 0.0, 4, False, "tau"),
        (0.5, math.inf, 4, False, "tau"),
        (0.5, 0.1, 0, False, "too few"),
        (0.5, 0.1, 1, True, "too few"),
    ],
)
def test_bad_input_is_refused(p, tau, n, leave_one_out, message):
    for method in (finite_pmd_mean, finite_pmd_part):
        with pytest.raises(ValueError, match=message):
            method(p, tau, n, leave_one_out=leave_one_out)

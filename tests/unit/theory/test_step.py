"""Exact steps against direct optimisation, against scipy's Lambert W, against high precision, and in their limits."""

import math

import numpy as np
import pytest
import torch

from heliostat.theory import multiplier, pmd_baseline, pmd_mean, pmd_part

from .problems import minimise_over_simplex, random_problem, squared_loss

ONE = torch.ones((), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_lengths", [False, True])
def test_pmd_mean_is_what_direct_optimisation_finds(seed, with_lengths):
    probs, rewards = random_problem(seed)
    tau = (0.1, 0.3, 1.0)[seed % 3]
    lengths = torch.tensor([1.0, 3.0, 0.5, 7.0, 2.0], dtype=torch.float64) if with_lengths else ONE.expand(5)
    targets = (rewards - (probs * rewards).sum()) / tau
    found, _ = minimise_over_simplex(lambda log_new: squared_loss(probs, targets, lengths, log_new), 5)
    step = pmd_mean(probs, rewards, tau, lengths)
    assert (step.probs - found).abs().max() < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_baseline_below_the_partition_is_what_direct_optimisation_finds(seed):
    probs, rewards = random_problem(seed + 10)
    tau = 0.4
    mean, part = float((probs * rewards).sum()), tau * float((probs.log() + rewards / tau).logsumexp(-1))
    for baseline in (mean - 0.5, 0.5 * (mean + part), part - 1e-3):
        targets = (rewards - baseline) / tau
        found, _ = minimise_over_simplex(lambda log_new, t=targets: squared_loss(probs, t, ONE, log_new), 5)
        assert (pmd_baseline(probs, rewards, tau, baseline).probs - found).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_same_policy_maximises_the_mixed_regulariser(seed):
    probs, rewards = random_problem(seed + 20)
    tau = 0.2
    step = pmd_mean(probs, rewards, tau)

    def negative(log_new):
        new = log_new.exp()
        chi_square = (new**2 / probs).sum() - 1
        kl = (new * (log_new - probs.log())).sum()
        return -(new * rewards).sum() + tau * kl + 0.5 * tau * float(step.lam) * chi_square

    found, _ = minimise_over_simplex(negative, 5)
    assert (step.probs - found).abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_identities_by_plain_sums(seed):
    probs, rewards = random_problem(seed + 30)
    tau = 0.3
    step = pmd_mean(probs, rewards, tau)
    old, new, r, lam = probs.numpy(), step.probs.numpy(), rewards.numpy(), float(step.lam)
    kl_new_old, kl_old_new = np.sum(new * np.log(new / old)), np.sum(old * np.log(old / new))
    chi_square, gain = np.sum(new**2 / old) - 1, np.sum((new - old) * r)
    assert np.sum(new) == pytest.approx(1, abs=1e-13)
    assert lam == pytest.approx(kl_old_new, rel=1e-11)
    assert kl_new_old + kl_old_new + lam * chi_square == pytest.approx(gain / tau, rel=1e-11)
    assert float(step.kl_new_old) == pytest.approx(kl_new_old, rel=1e-11)
    assert float(step.kl_old_new) == pytest.approx(kl_old_new, rel=1e-11)
    assert float(step.chi_square) == pytest.approx(chi_square, rel=1e-11)
    assert float(step.gain) == pytest.approx(gain, rel=1e-11)
    assert float(step.chi2_share) == pytest.approx(lam * chi_square * tau / gain, rel=1e-11)


def test_ratio_is_scipys_lambert_w_where_the_exponential_is_representable():
    special = pytest.importorskip("scipy.special")
    probs, rewards = random_problem(41)
    lengths = torch.tensor([2.0, 1.0, 4.0, 9.0, 3.0], dtype=torch.float64)
    for tau in (0.02, 0.3, 5.0):
        step = pmd_mean(probs, rewards, tau, lengths)
        targets = (rewards - (probs * rewards).sum()) / tau
        weight = (step.lam * lengths).numpy()
        expected = special.lambertw(weight * np.exp(targets.numpy())).real / weight
        np.testing.assert_allclose(step.ratio.numpy(), expected, rtol=1e-11)


def test_longer_answers_of_equal_reward_get_smaller_ratios():
    lengths = torch.tensor([5.0, 19.0, 5.0, 19.0], dtype=torch.float64)
    step = pmd_mean([0.1, 0.1, 0.4, 0.4], [1.0, 1.0, 0.0, 0.0], 0.2, lengths)
    assert step.ratio[0] > step.ratio[1] + 0.1
    assert step.ratio[2] > step.ratio[3]
    # Multiplying all lengths by one number divides lambda and changes nothing else.
    scaled = pmd_mean([0.1, 0.1, 0.4, 0.4], [1.0, 1.0, 0.0, 0.0], 0.2, 10 * lengths)
    torch.testing.assert_close(scaled.ratio, step.ratio, rtol=1e-12, atol=0)
    assert float(scaled.lam) == pytest.approx(float(step.lam) / 10, rel=1e-12)


def test_extremes_keep_their_certificate():
    p = torch.tensor([1e-300, 1e-30, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-16], dtype=torch.float64)
    probs = torch.stack([p, 1 - p], -1)
    tau = torch.logspace(-4, 4, 17, dtype=torch.float64)[:, None]
    for method in (pmd_mean, pmd_part):
        step = method(probs, [1.0, 0.0], tau)
        for name in ("log_ratio", "lam", "kl_new_old", "kl_old_new", "gain", "chi2_share", "probs"):
            assert torch.isfinite(getattr(step, name)).all(), name
        assert step.certificate.worst.max() < 1e-11
        assert (step.gain >= 0).all()
    assert (pmd_mean(probs, [1.0, 0.0], tau).lam > 0).all()


def test_log_probabilities_far_below_every_float():
    log_p = -torch.logspace(1, 5, 9, dtype=torch.float64)
    log_probs = torch.stack([log_p, torch.log1p(-log_p.exp())], -1)
    tau = torch.logspace(-4, 4, 9, dtype=torch.float64)[:, None]
    mean, part = (method(None, [1.0, 0.0], tau, log_probs=log_probs) for method in (pmd_mean, pmd_part))
    for step in (mean, part):
        assert not step.ratio.isnan().any()
        assert not step.chi_square.isnan().any()
        assert step.certificate.worst.max() < 1e-11
    # Where p is below e^{-2/tau} the two agree; where it is far above, PMD-mean stops near sqrt(p / tau).
    assert float((mean.log_ratio - part.log_ratio)[-1].abs().max()) < 1e-3
    scarce_log_gain = 0.5 * math.log(1e4) - 0.5 * float(log_p[4])
    assert float(mean.log_ratio[0, 4, 0]) == pytest.approx(scarce_log_gain, rel=0.05)


@pytest.mark.slow
def test_many_problems_of_wildly_different_scales():
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_probs = (normal(400, 4) * 10 ** (3 * torch.rand(400, 1, generator=generator))).log_softmax(-1)
    rewards, lengths = normal(400, 4), normal(400, 4).mul(2).exp()
    tau = 10 ** (8 * torch.rand(400, generator=generator, dtype=torch.float64) - 4)
    step = pmd_mean(None, rewards, tau, lengths, log_probs=log_probs)
    assert step.certificate.worst.max() < 1e-10
    assert torch.isfinite(step.log_lam).all()
    edge = tau * (log_probs + rewards / tau[:, None]).logsumexp(-1)
    for room in (1e-3, -1e-3):
        step = pmd_baseline(None, rewards, tau, edge - room * tau, lengths, log_probs=log_probs)
        assert step.certificate.worst.max() < 1e-8
        assert not step.log_ratio.isnan().any()


def test_an_action_that_holds_all_but_less_than_a_float():
    """No target is above zero in float64 here, and yet lambda is known: ``KL(old || new)``, to first order."""
    step = pmd_mean(None, [1.0, 0.0], 0.5, log_probs=[0.0, -5000.0])
    expected = -5000.0 + math.log(math.exp(-2) + 1)  # p phi(-1/tau) = p (e^-2 - 1 + 2)
    assert float(step.log_lam) == pytest.approx(expected, rel=1e-14)
    assert float(step.log_ratio[1]) == pytest.approx(-2.0, rel=1e-14)


def test_constant_targets_keep_the_policy_and_measure_the_room():
    step = pmd_baseline([0.5, 0.5], [1.0, 1.0], 0.1, [-5.0, 0.999, 1.0, 1.1])
    torch.testing.assert_close(step.lam, torch.tensor([60.0, 0.01, 0.0, -1.0], dtype=torch.float64), rtol=1e-9, atol=0)
    assert step.log_ratio.abs().max() < 1e-5


@pytest.mark.parametrize(("p", "tau"), [(1e-300, 0.05), (1e-12, 1e-4), (0.5, 1e4), (0.3, 1e-4), (1 - 1e-10, 2.0)])
def test_multiplier_has_full_relative_precision(p, tau):
    """One Newton step at 700 digits from our answer measures how far it is from the root."""
    mpmath = pytest.importorskip("mpmath")
    step = pmd_mean([p, 1 - p], [1.0, 0.0], tau)
    with mpmath.workdps(700):
        right, tau_exact = mpmath.mpf(p), mpmath.mpf(tau)
        classes = [(right, (1 - right) / tau_exact), (1 - right, -right / tau_exact)]

        def excess(log_lam):
            lam = mpmath.exp(log_lam)
            return sum(mass * mpmath.lambertw(lam * mpmath.exp(t)) / lam for mass, t in classes) - 1

        guess, nearby = mpmath.mpf(float(step.log_lam)), mpmath.mpf("1e-40")
        slope = (excess(guess + nearby) - excess(guess)) / nearby
        assert abs(float(excess(guess) / slope)) < 2e-13


def test_large_tau_is_the_exponential_tilt():
    probs, rewards = random_problem(51)
    variance = float((probs * rewards**2).sum() - (probs * rewards).sum() ** 2)
    for tau in (1e2, 1e4):
        mean, part = pmd_mean(probs, rewards, tau), pmd_part(probs, rewards, tau)
        assert (mean.log_ratio - part.log_ratio).abs().max() < 10 * rewards.abs().max() ** 3 / tau**3
        assert float(mean.lam) == pytest.approx(variance / (2 * tau**2), rel=5 / tau)
        gap = tau * float((probs.log() + rewards / tau).logsumexp(-1)) - float((probs * rewards).sum())
        assert gap == pytest.approx(variance / (2 * tau), rel=10 / tau, abs=1e-11)


def test_part_in_its_limits():
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    rewards = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    tilt = pmd_part(probs, rewards, 0.7)
    expected = (probs.log() + rewards / 0.7).softmax(-1)
    torch.testing.assert_close(tilt.probs, expected, rtol=1e-13, atol=0)
    best = pmd_part(probs, rewards, 1e-4)
    torch.testing.assert_close(best.probs, torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64))
    assert (pmd_part(probs, rewards, 1e12).log_ratio.abs() < 1e-11).all()


def test_baseline_family_meets_its_two_members_and_flips_sign_between():
    probs, rewards = random_problem(61)
    tau = 0.25
    mean, part = pmd_mean(probs, rewards, tau), pmd_part(probs, rewards, tau)
    edge = tau * float((probs.log() + rewards / tau).logsumexp(-1))
    at_mean = pmd_baseline(probs, rewards, tau, float((probs * rewards).sum()))
    torch.testing.assert_close(at_mean.log_ratio, mean.log_ratio, rtol=1e-10, atol=1e-12)
    at_part = pmd_baseline(probs, rewards, tau, edge)
    torch.testing.assert_close(at_part.log_ratio, part.log_ratio, rtol=0, atol=1e-12)
    assert abs(float(at_part.lam)) < 1e-12
    lams = pmd_baseline(probs, rewards, tau, edge + torch.tensor([-0.2, -0.02, 0.0, 0.02, 0.2])).lam
    assert (lams[:2] > 0).all()
    assert (lams[3:] < 0).all()
    assert lams[0] > lams[1]


def test_equal_rewards_leave_the_policy_alone():
    step = pmd_mean([0.2, 0.3, 0.5], [3.0, 3.0, 3.0], 0.1, [1.0, 2.0, 3.0])
    assert float(step.lam) == 0.0
    assert (step.log_ratio == 0).all()
    assert float(step.chi2_share) == 0.0
    assert float(step.certificate.worst) == 0.0
    single = pmd_mean([1.0], [0.7], 0.1)
    assert (float(single.lam), float(single.ratio)) == (0.0, 1.0)


def test_a_batch_is_its_entries_one_by_one():
    problems = [random_problem(seed) for seed in range(70, 76)]
    probs, rewards = (torch.stack(part) for part in zip(*problems, strict=True))
    tau = torch.tensor([1e-3, 0.05, 0.3, 1.0, 30.0, 1e3], dtype=torch.float64)
    batch = pmd_mean(probs.reshape(2, 3, 5), rewards.reshape(2, 3, 5), tau.reshape(2, 3))
    assert batch.lam.shape == (2, 3)
    for i in range(6):
        alone = pmd_mean(probs[i], rewards[i], float(tau[i]))
        torch.testing.assert_close(batch.log_ratio.reshape(6, 5)[i], alone.log_ratio, rtol=1e-12, atol=1e-13)
        assert float(batch.lam.flatten()[i]) == pytest.approx(float(alone.lam), rel=1e-12)
    assert pmd_mean(torch.ones(0, 3) / 3, [1.0, 2.0, 3.0], 0.1).lam.shape == (0,)


def test_a_root_finder_that_cannot_settle_says_so(monkeypatch):
    monkeypatch.setattr(multiplier, "MAX_ITERATIONS", 2)
    with pytest.raises(ArithmeticError, match="did not settle within 2 iterations"):
        pmd_mean([0.3, 0.7], [1.0, 0.0], 0.1)

"""Repeated exact steps: quoted step counts, the telescoping identity, and limits."""

import pytest
import torch

from heliostat.theory import iterate, pmd_baseline, pmd_mean, pmd_part, steps_to, telescoping

from .problems import random_problem


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "mean", "part"), [(0.05, 3, 1), (0.2, 5, 3), (1.0, 15, 14), (3.0, 42, 42)])
def test_steps_to_99_percent_as_quoted(tau, mean, part):
    assert steps_to(pmd_mean, 1e-4, tau) == mean
    assert steps_to(pmd_part, 1e-4, tau) == part


@pytest.mark.parametrize("seed", range(5))
def test_one_step_splits_as_the_identity_says(seed):
    probs, rewards = random_problem(seed + 90)
    tau = 0.3
    targets = [torch.nn.functional.one_hot(rewards.argmax(), 5).double(), random_problem(seed + 95)[0], probs]
    mean = float((probs * rewards).sum())
    for step in (
        pmd_mean(probs, rewards, tau),
        pmd_part(probs, rewards, tau),
        pmd_baseline(probs, rewards, tau, mean - 1),
    ):
        for target in targets:
            terms = telescoping(step, rewards, tau, target)
            assert abs(float(terms.residual)) < 1e-12
            assert float(terms.regret) == pytest.approx(float(((target - step.probs) * rewards).sum()), abs=1e-13)
            kls = [float((target * (target / p).log().nan_to_num(0.0, 0.0, 0.0)).sum()) for p in (probs, step.probs)]
            assert float(terms.approach) == pytest.approx(tau * (kls[0] - kls[1]), abs=1e-12)


def test_regret_telescopes_over_a_trajectory():
    """Summed over steps, only the first and last KL to the comparison policy are left of the first bracket."""
    probs, rewards = random_problem(97)
    tau, num_steps = 0.5, 12
    best = torch.nn.functional.one_hot(rewards.argmax(), 5).double()
    path = iterate(pmd_mean, probs, rewards, tau, num_steps)
    regrets, strides, slowdowns = 0.0, 0.0, 0.0
    for t in range(num_steps):
        step = pmd_mean(None, rewards, tau, log_probs=path.log_probs[t])
        terms = telescoping(step, rewards, tau, best)
        regrets, strides = regrets + float(terms.regret), strides + float(terms.stride)
        slowdowns += float(terms.slowdown)
        assert float(step.gain) >= 0
    ends = -(best * path.log_probs[0]).sum() + (best * path.log_probs[-1].clamp(min=-1e300)).sum()
    assert regrets == pytest.approx(tau * float(ends) + strides + slowdowns, rel=1e-10)
    assert slowdowns > 0
    assert float(path.mean_reward[-1]) > float(path.mean_reward[0])


def test_steps_of_part_add_up():
    probs, rewards = random_problem(98)
    path = iterate(pmd_part, probs, rewards, 2.0, 4)
    once = pmd_part(probs, rewards, 0.5)
    torch.testing.assert_close(path.log_probs[-1], once.log_probs, rtol=1e-12, atol=1e-12)


def test_near_success_both_converge_at_the_same_rate():
    ends = {}
    for method in (pmd_mean, pmd_part):
        failure = iterate(method, [1 - 1e-6, 1e-6], [1.0, 0.0], 0.5, 4).log_probs[:, 1]
        ends[method] = float(failure[-1] - failure[-2])
    assert ends[pmd_mean] == pytest.approx(ends[pmd_part], rel=1e-4)
    assert ends[pmd_part] == pytest.approx(-2.0, rel=1e-4)


def test_a_trajectory_without_steps_is_its_start():
    path = iterate(pmd_mean, [[0.5, 0.5], [0.1, 0.9]], [1.0, 0.0], 0.1, 0)
    assert path.log_probs.shape == (1, 2, 2)
    assert path.lam.shape == (0, 2)
    torch.testing.assert_close(path.mean_reward[0], torch.tensor([0.5, 0.1], dtype=torch.float64))


def test_bad_input_is_refused():
    for success, goal in ((0.0, 0.9), (0.5, 1.0)):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            steps_to(pmd_mean, success, 0.1, goal)
    step = pmd_mean([0.0, 0.4, 0.6], [1.0, 1.0, 0.0], 0.1)
    with pytest.raises(ValueError, match="gives probability zero"):
        telescoping(step, [1.0, 1.0, 0.0], 0.1, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="sum to one"):
        telescoping(step, [1.0, 1.0, 0.0], 0.1, [0.5, 0.0, 0.0])

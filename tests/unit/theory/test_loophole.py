"""A baseline above the log-partition: what is quoted of it, and brute force on small action sets."""

import pytest
import torch

from heliostat.theory import pmd_baseline, pmd_part

from .problems import minimise_over_simplex, random_problem, squared_loss

TAU = 0.3
PROBS = torch.tensor([1e-4, 0.3, 0.6999], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
EDGE = TAU * float((PROBS.log() + REWARDS / TAU).logsumexp(-1))


@pytest.mark.parametrize(("above", "mass"), [(0.1, 0.28), (0.4, 0.74)])
def test_missing_mass_is_dumped_on_the_rare_wrong_answer(above, mass):
    step = pmd_baseline(PROBS, REWARDS, TAU, EDGE + above)
    assert round(float(step.probs[0]), 2) == mass
    assert float(step.lam) < 0
    assert float(step.certificate.worst) < 1e-12


def test_the_reward_of_the_hiding_place_hardly_matters():
    for reward in (-1.0, 0.0, 0.5):
        rewards = REWARDS.clone()
        rewards[0] = reward
        edge = TAU * float((PROBS.log() + rewards / TAU).logsumexp(-1))
        assert float(pmd_baseline(PROBS, rewards, TAU, edge + 0.4).probs[0]) > 0.7


def test_a_small_overshoot_is_shared_before_it_is_dumped():
    """Just above the partition every ratio grows a little; past a threshold the optimum jumps to the rare action."""
    shared = pmd_baseline(PROBS, REWARDS, TAU, EDGE + 0.01)
    dumped = pmd_baseline(PROBS, REWARDS, TAU, EDGE + 0.08)
    assert float(shared.probs[0]) < 1e-3
    assert float(shared.probs[1]) > float(pmd_part(PROBS, REWARDS, TAU).probs[1])
    assert float(dumped.probs[0]) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("above", [0.02, 0.3])
def test_no_start_of_direct_optimisation_finds_anything_cheaper(seed, above):
    probs, rewards = random_problem(seed + 80, num_actions=3)
    edge = TAU * float((probs.log() + rewards / TAU).logsumexp(-1))
    lengths = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    targets = (rewards - edge - above) / TAU
    step = pmd_baseline(probs, rewards, TAU, edge + above, lengths)
    ours = float(squared_loss(probs, targets, lengths, step.log_probs))
    found, theirs = minimise_over_simplex(lambda log_new: squared_loss(probs, targets, lengths, log_new), 3, starts=6)
    assert ours <= theirs + 1e-10
    assert (step.probs - found).abs().max() < 1e-5
    assert float(step.certificate.worst) < 1e-11


def test_of_two_equal_hiding_places_the_first_is_taken():
    step = pmd_baseline([1e-4, 1e-4, 0.9998], [0.0, 0.0, 1.0], 0.3, 1.4)
    assert float(step.probs[0]) > 0.2
    assert float(step.probs[1]) < 1e-3


def test_actions_without_probability_are_no_hiding_place():
    with_zero = pmd_baseline([0.0, *PROBS.tolist()], [0.0, *REWARDS.tolist()], TAU, EDGE + 0.4)
    without = pmd_baseline(PROBS, REWARDS, TAU, EDGE + 0.4)
    assert float(with_zero.probs[0]) == 0.0
    torch.testing.assert_close(with_zero.probs[1:], without.probs, rtol=1e-10, atol=1e-14)


def test_a_single_action_has_nowhere_to_go():
    step = pmd_baseline([1.0], [0.0], 0.5, 2.0)
    assert float(step.probs) == pytest.approx(1.0, abs=1e-12)
    assert float(step.lam) == pytest.approx(-4.0, abs=1e-9)


def test_among_many_actions_the_cheapest_is_found():
    """Equal targets, so the rarest action is the cheapest hiding place wherever it stands in the list."""
    probs = torch.arange(1.0, 21.0, dtype=torch.float64)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    probs = (probs**3) / (probs**3).sum()
    step = pmd_baseline(probs, torch.zeros(20), 0.2, 0.3)
    assert int(step.log_ratio.argmax()) == int(probs.argmin())
    assert float(step.probs.max()) > 0.5
    assert float(step.certificate.worst) < 1e-12

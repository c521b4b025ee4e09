import math

import pytest
import torch
from ragged import build, coefficients, random_batch

from heliostat.objectives.baselines import mean_normalized_advantage


def test_by_hand():
    """A share p of successes: 1/p - 1 for each of them, -1 for the others."""
    found = mean_normalized_advantage(torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0]))
    assert found.tolist() == pytest.approx([3, -1, -1, -1, 3, -1, -1, -1])


def test_a_group_without_success_or_without_failure_teaches_nothing():
    for reward in (0.0, 1.0, 0.3):
        assert not mean_normalized_advantage(torch.full((5,), reward)).any()
    assert mean_normalized_advantage(torch.tensor([1.0])).tolist() == [0.0]


def test_the_scale_of_rewards_does_not_matter():
    rewards = torch.tensor([0.5, 0.0, 2.0, 0.25])
    assert torch.equal(mean_normalized_advantage(4 * rewards), mean_normalized_advantage(rewards))


def test_negative_rewards_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"2 of 3 rewards in a group are negative.* add a constant"):
        build("maxrl").advantages(torch.tensor([-1.0, 1.0, -0.5]))


def test_the_groups_gradient_is_the_mean_score_of_successes_minus_that_of_all():
    """Scores are vectors here, one per completion; the group's gradient is the mean of A_i times its score."""
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0], dtype=torch.float64)
    gradient = (mean_normalized_advantage(rewards)[:, None] * scores).mean(0)
    assert torch.allclose(gradient, scores[rewards > 0].mean(0) - scores.mean(0))


@pytest.mark.parametrize("size", [2, 3, 8, 16])
@pytest.mark.parametrize("success", [0.05, 0.4, 0.9])
def test_in_expectation_it_is_the_likelihoods_expansion_up_to_one_below_the_groups_size(size, success):
    """A policy with one parameter p: a success has the score 1/p, a failure -1/(1-p); all 2^n outcomes by count."""
    expected = 0.0
    for hits in range(size + 1):
        rewards = torch.tensor([1.0] * hits + [0.0] * (size - hits), dtype=torch.float64)
        scores = rewards / success - (1 - rewards) / (1 - success)
        weight = math.comb(size, hits) * success**hits * (1 - success) ** (size - hits)
        expected += weight * float((mean_normalized_advantage(rewards) * scores).mean())
    assert expected == pytest.approx(sum((1 - success) ** (k - 1) for k in range(1, size)), rel=1e-12)
    assert expected <= 1 / success  # the derivative of log p, its limit


def test_groups_of_two_are_twice_reinforce():
    rewards = torch.tensor([1.0, 0.0])
    assert torch.equal(build("maxrl").advantages(rewards), 2 * build("reinforce").advantages(rewards))


def test_at_the_anchor_it_is_reinforce_with_its_baseline():
    logp_new, tokens = random_batch(0, drift=0.0)
    tokens.logp_old.copy_(logp_new.detach())
    plain = build("reinforce", baseline="mean-normalized", length_normalization="token")
    assert torch.allclose(coefficients(build("maxrl"), logp_new, tokens), coefficients(plain, logp_new, tokens))


def test_away_from_it_it_is_clipped_as_grpo_is():
    logp_new, tokens = random_batch(0, drift=0.5)
    grpo = build("grpo", length_normalization="token")
    assert torch.equal(coefficients(build("maxrl"), logp_new, tokens), coefficients(grpo, logp_new, tokens))

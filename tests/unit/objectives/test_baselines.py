import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from heliostat.objectives.baselines import (
    ADVANTAGES,
    leave_one_out_advantage,
    mean_advantage,
    partition_advantage,
    standardized_advantage,
)

EVERY = {
    **ADVANTAGES,
    "partition": lambda rewards: partition_advantage(rewards, 0.3),
    "partition without one": lambda rewards: partition_advantage(rewards, 0.3, leave_one_out=True),
    "floored partition": lambda rewards: partition_advantage(rewards, 0.01, leave_one_out=True, floor=1e-8),
}
SHIFT_FREE = {name: advantage for name, advantage in EVERY.items() if name != "mean-normalized"}
groups = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=9)
taus = st.floats(1e-4, 1e4)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    rewards = tensor([1.0, 0.0, 0.0, 1.0, 0.5])
    assert mean_advantage(rewards).tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5, 0.0])
    assert leave_one_out_advantage(rewards).tolist() == pytest.approx([0.625, -0.625, -0.625, 0.625, 0.0])
    std = 0.5  # sqrt(4 * 0.25 / 4)
    expected = [0.5 / (std + 1e-4), -0.5 / (std + 1e-4)]
    assert standardized_advantage(rewards).tolist()[:2] == pytest.approx(expected)
    log_z = math.log((2 * math.e**2 + 2 + math.e) / 5)  # tau = 1/2
    assert partition_advantage(rewards, 0.5).tolist()[:2] == pytest.approx([1 - 0.5 * log_z, -0.5 * log_z])


@given(groups)
def test_leave_one_out_is_each_reward_minus_the_mean_of_the_others(values):
    others = [sum(values[:i] + values[i + 1 :]) / (len(values) - 1) for i in range(len(values))]
    expected = [value - other for value, other in zip(values, others, strict=True)]
    assert leave_one_out_advantage(tensor(values)).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@given(groups, taus, st.booleans())
def test_partition_matches_an_independent_log_sum_exp(values, tau, leave_one_out):
    for index, advantage in enumerate(partition_advantage(tensor(values), tau, leave_one_out).tolist()):
        pool = values[:index] + values[index + 1 :] if leave_one_out else values
        log_z = logsumexp([value / tau for value in pool]) - math.log(len(pool))
        assert advantage == pytest.approx(values[index] - tau * log_z, abs=1e-10 * max(1.0, tau))


@given(groups, taus)
def test_the_log_partition_is_never_below_the_mean(values, tau):
    assert bool((partition_advantage(tensor(values), tau) <= mean_advantage(tensor(values)) + 1e-10).all())


@pytest.mark.slow
@given(groups)
def test_partition_limits_in_tau(values):
    rewards = tensor(values)
    assert torch.allclose(partition_advantage(rewards, 1e6), mean_advantage(rewards), atol=1e-4)
    without_one = partition_advantage(rewards, 1e6, leave_one_out=True)
    assert torch.allclose(without_one, leave_one_out_advantage(rewards), atol=1e-4)
    assert torch.allclose(partition_advantage(rewards, 1e-7), rewards - rewards.max(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("advantage", SHIFT_FREE.values(), ids=SHIFT_FREE)
@given(groups, st.floats(-100, 100), st.randoms())
def test_a_constant_shift_changes_nothing_and_order_does_not_matter(advantage, values, shift, random):
    base = advantage(tensor(values))
    spread = max(values) - min(values)
    if spread > 1e-3 or spread == 0:  # below that, a shift of 100 rounds the differences themselves away
        assert torch.allclose(advantage(tensor(values) + shift), base, atol=1e-8)
    order = list(range(len(values)))
    random.shuffle(order)
    assert torch.allclose(advantage(tensor([values[i] for i in order])), base[order], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("advantage", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(-1e3, 1e3), st.integers(2, 33))
def test_equal_rewards_give_exactly_zero(advantage, dtype, value, size):
    positive = advantage is EVERY["mean-normalized"]  # which refuses negative rewards
    result = advantage(torch.full((size,), abs(value) if positive else value, dtype=dtype))
    assert result.dtype == dtype
    assert bool((result == 0).all())


def test_openkimi_quirk_of_the_floor():
    """16 completions, rewards +-1, tau = .01, one correct: the floor caps the correct target at -log 1e-8."""
    rewards = tensor([1.0] + [-1.0] * 15)
    part = partition_advantage(rewards, 0.01, leave_one_out=True, floor=1e-8) / 0.01
    assert part[0].item() == pytest.approx(-math.log(1e-8))
    assert part[1].item() == pytest.approx(-200 + math.log(15))
    mean = leave_one_out_advantage(rewards) / 0.01
    assert mean[0].item() == pytest.approx(200)
    assert mean[1].item() == pytest.approx(-200 / 15)


def test_standardized_ignores_reward_scale_up_to_its_epsilon():
    rewards = tensor([1.0, 0.0, 0.25, 0.5])
    scaled = standardized_advantage(1000 * rewards, eps=0.0)
    assert torch.allclose(scaled, standardized_advantage(rewards, eps=0.0), atol=1e-12)
    assert scaled.std().item() == pytest.approx(1.0)


@pytest.mark.parametrize("advantage", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused_with_their_number(advantage, bad):
    with pytest.raises(ValueError, match="2 of 3 rewards"):
        advantage(tensor([bad, 0.0, bad]))


@pytest.mark.parametrize("advantage", EVERY.values(), ids=EVERY)
def test_an_empty_group_is_refused(advantage):
    with pytest.raises(ValueError, match="one reward per completion"):
        advantage(tensor([]))


def test_a_group_of_one_has_no_advantage_over_itself():
    one = tensor([0.7])
    assert mean_advantage(one).tolist() == [0.0]
    assert standardized_advantage(one).tolist() == [0.0]
    assert partition_advantage(one, 0.01).tolist() == [0.0]


def test_a_group_of_one_cannot_leave_one_out():
    with pytest.raises(ValueError, match=r"at least 2 completions per group, got 1; raise rollout\.group_size"):
        leave_one_out_advantage(tensor([0.7]))
    with pytest.raises(ValueError, match="at least 2 completions per group, got 1"):
        partition_advantage(tensor([0.7]), 0.1, leave_one_out=True)


def test_whole_number_rewards_are_refused_rather_than_truncated():
    with pytest.raises(TypeError):
        mean_advantage(torch.tensor([1, 0]))

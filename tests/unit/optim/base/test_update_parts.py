"""The shared parts of an update: weight decay, momentum, and the bound on a step's divergence."""

import math

import pytest
import torch

from heliostat.optim.base.update_parts import NotFinite, bounded_divergence, decay_, momentum_buffer


def test_weight_decay_multiplies_by_one_minus_lr_times_decay():
    weight = torch.tensor([2.0, -4.0])
    decay_(weight, {"lr": 0.5, "weight_decay": 0.25})
    assert torch.equal(weight, torch.tensor([2.0, -4.0]) * 0.875)


def test_no_weight_decay_touches_no_weight():
    weight = torch.tensor([math.inf, math.nan])
    decay_(weight, {"lr": math.inf, "weight_decay": 0.0})
    assert weight[0] == math.inf


def test_a_learning_rate_may_be_a_tensor():
    weight, other = torch.ones(3), torch.ones(3)
    decay_(weight, {"lr": torch.tensor(0.5), "weight_decay": 0.25})
    decay_(other, {"lr": 0.5, "weight_decay": 0.25})
    assert torch.equal(weight, other)


def test_momentum_begins_with_zeros_in_float32_and_is_kept():
    state: dict = {}
    buffer = momentum_buffer(state, torch.ones(2, 3, dtype=torch.bfloat16))
    assert torch.equal(buffer, torch.zeros(2, 3))
    buffer.add_(1.0)
    assert momentum_buffer(state, torch.ones(2, 3)) is buffer
    assert momentum_buffer({}, torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_a_step_within_the_bound_is_not_shortened():
    assert bounded_divergence(0.5, 0.1, lambda: 4.0) == (pytest.approx(0.02), 1.0)


def test_a_longer_step_ends_at_the_bound():
    kl, scale = bounded_divergence(0.005, 0.1, lambda: 4.0)
    assert scale == pytest.approx(0.5)
    assert kl == pytest.approx(0.005)
    shortened, _ = bounded_divergence(1.0, 0.1 * scale, lambda: 4.0)
    assert shortened == pytest.approx(0.005)


def test_a_step_without_divergence_is_not_shortened():
    assert bounded_divergence(1e-3, 0.1, lambda: 0.0) == (0.0, 1.0)


def test_without_a_bound_nothing_is_computed():
    def refuse() -> float:
        raise AssertionError("the decrement was computed")

    kl, scale = bounded_divergence(None, 0.1, refuse)
    assert math.isnan(kl)
    assert scale == 1.0


@pytest.mark.parametrize("decrement", [math.inf, math.nan])
def test_a_divergence_that_is_not_finite_is_refused(decrement):
    with pytest.raises(NotFinite):
        bounded_divergence(1e-3, 0.1, lambda: decrement)

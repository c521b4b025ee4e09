"""Shaken weights are others, and afterwards each is what it was."""

import pytest
import torch

from heliostat.models.checks.weight_perturbation import FOR_ZERO, perturbed_weights

SPECIAL = (0.0, -0.0, 1.0, -1.0, FOR_ZERO, -FOR_ZERO, float("inf"), 1e-38, 3e38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_bit_pattern_comes_back(dtype, seed):
    if dtype.itemsize == 2:
        weight = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).reshape(256, 256)
    else:
        weight = torch.cat([torch.tensor(SPECIAL, dtype=dtype), torch.randn(999, dtype=dtype)]).reshape(-1, 8)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before = weight.view(integer).clone()
    with perturbed_weights([weight, weight.T], seed):  # two that share memory
        assert not torch.equal(weight.view(integer), before)
    assert torch.equal(weight.view(integer), before)


def test_about_half_of_the_numbers_move_a_little_and_none_stays_0_for_certain():
    weight, zeros, scalar = torch.randn(300, 50), torch.zeros(40, 40), torch.tensor(0.5)
    before = weight.clone()
    counted = torch.arange(5)
    with perturbed_weights([weight, zeros, scalar, counted, torch.zeros(0)], seed=0):
        moved = weight != before
        assert 0.45 < moved.float().mean() < 0.55
        share = ((weight - before) / before)[moved].abs()
        assert 0.03 < share.min() <= share.max() < 0.07
        assert 0.4 < (zeros == FOR_ZERO).float().mean() < 0.6
        assert torch.equal(counted, torch.arange(5))
    assert torch.equal(weight, before)


def test_weights_are_shaken_in_pieces_alike(monkeypatch):
    monkeypatch.setattr("heliostat.models.checks.weight_perturbation.MAX_ENTRIES", 7)
    weight = torch.randn(9, 3)
    before = weight.clone()
    with perturbed_weights([weight], seed=3):
        assert (weight != before).any(dim=1).sum() > 4
    assert torch.equal(weight, before)


def test_twins_are_shaken_apart():
    one, other = torch.ones(64), torch.ones(64)
    with perturbed_weights([one, other], seed=0):
        assert not torch.equal(one, other)

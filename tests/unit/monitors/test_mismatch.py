import math

import numpy as np
import pytest
import torch

from heliostat.monitors.mismatch import Mismatch
from heliostat.monitors.signal import merge
from heliostat.tracking import check_key


def measure(train, gen, sequence):
    sequence = torch.as_tensor(sequence)
    return Mismatch().measure(torch.as_tensor(train), torch.as_tensor(gen), sequence, int(sequence.max()) + 1)


def test_expectations_are_divergences_of_enumerated_policies():
    """One-token sequences, each present as often as the sampler draws it (in 100ths)."""
    counts = np.array([50, 30, 15, 5])
    p, q = counts / 100, np.array([0.4, 0.3, 0.2, 0.1])
    drawn = np.repeat(np.arange(4), counts)
    numbers = Mismatch().finish(measure(np.log(q)[drawn], np.log(p)[drawn], range(100)))
    divergence = float((p * np.log(p / q)).sum())
    assert numbers["mismatch/k1"] == pytest.approx(divergence)
    assert numbers["mismatch/k3"] == pytest.approx(divergence)
    assert numbers["mismatch/chi2_token"] == pytest.approx((q**2 / p).sum() - 1)
    assert numbers["mismatch/chi2_sequence"] == pytest.approx((q**2 / p).sum() - 1)
    assert numbers["mismatch/ess"] == pytest.approx(1 / (q**2 / p).sum())
    for key in numbers:
        check_key(key)


def test_equal_policies_and_no_tokens():
    same = Mismatch().finish(measure([-1.0, -2.0], [-1.0, -2.0], [0, 1]))
    assert same == {
        "mismatch/k1": 0.0,
        "mismatch/k3": 0.0,
        "mismatch/chi2_token": 0.0,
        "mismatch/chi2_sequence": 0.0,
        "mismatch/ess": 1.0,
    }
    assert Mismatch().finish(Mismatch().empty()) == {}


def test_k3_is_never_negative_and_sequences_add_up():
    rng = np.random.default_rng(0)
    train, gen = -rng.random(12), -rng.random(12)
    sequence = np.repeat([0, 1, 2], 4)
    moments = measure(train, gen, sequence)
    numbers = Mismatch().finish(moments)
    assert numbers["mismatch/k3"] >= 0
    sure = Mismatch().finish(measure(gen - 0.5, gen, sequence))  # every weight is below 1
    assert sure["mismatch/chi2_token"] == pytest.approx((1 - np.exp(-0.5)) ** 2)
    assert sure["mismatch/chi2_sequence"] == pytest.approx((1 - np.exp(-2)) ** 2)
    weight = np.exp((train - gen).reshape(3, 4).sum(axis=1))
    assert numbers["mismatch/ess"] == pytest.approx(weight.mean() ** 2 / (weight**2).mean())
    halves = [measure(train[:8], gen[:8], sequence[:8]), measure(train[8:], gen[8:], [0] * 4)]
    assert Mismatch().finish(merge(halves)) == pytest.approx(numbers)


def test_a_hopeless_gap_stays_finite():
    numbers = Mismatch().finish(measure([-1.0, 0.0], [-900.0, -1.0], [0, 1]))
    assert all(math.isfinite(value) for value in numbers.values())

"""Estimators against brute force, against theory, and against the trainer's own."""

from __future__ import annotations

from itertools import combinations
from math import hypot, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.statistics import (
    Estimate,
    bootstrap,
    difference,
    interquartile_estimate,
    interquartile_mean,
    pass_at_k,
)


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(num_samples: int) -> None:
    for num_success in range(num_samples + 1):
        outcomes = [True] * num_success + [False] * (num_samples - num_success)
        for k in range(1, num_samples + 1):
            subsets = list(combinations(outcomes, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(num_samples, num_success, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    successes = rng.binomial(6, 0.3, 20_000)
    for k in (1, 2, 4, 6):
        mean = np.mean([pass_at_k(6, int(count), k) for count in successes])
        assert mean == pytest.approx(1 - 0.7**k, abs=0.01)


@pytest.mark.parametrize(("num_samples", "num_success", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_is_undefined(num_samples: int, num_success: int, k: int) -> None:
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(num_samples, num_success, k)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_holds_its_mean_and_is_the_same_every_time(values: list[float]) -> None:
    estimate = bootstrap(values)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert bootstrap(values) == estimate


def test_equal_values_have_no_width() -> None:
    assert bootstrap([0.5] * 7) == Estimate(0.5, 0.5, 0.5)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        estimate = bootstrap(rng.binomial(4, 0.6, 100) / 4)
        hits += estimate.low <= 0.6 <= estimate.high
    assert 0.91 <= hits / 200 <= 0.985


def test_interval_width_is_the_normal_one_for_many_problems() -> None:
    values = np.random.default_rng(1).binomial(1, 0.3, 400).astype(float)
    estimate = bootstrap(values.tolist())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * values.std() / sqrt(400), rel=0.08)


@given(st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0, 0.2), st.floats(0, 0.2))
def test_differences_of_symmetric_intervals_add_in_quadrature(a: float, b: float, wide: float, thin: float) -> None:
    change = difference(Estimate(a, a - wide, a + wide), Estimate(b, b - thin, b + thin))
    assert change.value == pytest.approx(b - a)
    assert change.high - change.value == pytest.approx(hypot(wide, thin))
    assert change.value - change.low == pytest.approx(hypot(wide, thin))


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([1.0, 2.0, 3.0, 4.0]) == 2.5
    assert interquartile_mean([-1e9, 2.0, 3.0, 1e9]) == 2.5
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 1e9]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 3) / 2.5)
    assert interquartile_mean([3.0]) == 3.0
    assert interquartile_mean([1.0, 5.0]) == 3.0


def test_its_interval_holds_it_and_closes_on_equal_values():
    estimate = interquartile_estimate([1.0, 2.0, 3.0, 4.0, 50.0])
    assert estimate.low <= estimate.value <= estimate.high
    same = interquartile_estimate([2.0, 2.0, 2.0])
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)

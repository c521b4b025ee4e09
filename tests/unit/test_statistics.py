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
    Z,
    bootstrap,
    difference,
    interquartile_estimate,
    interquartile_mean,
    pass_at_k,
    success_change,
    success_rate,
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


# -- success rates and their changes -----------------------------------------------------------------------------------


def wilson(num_success: int, num: int) -> tuple[float, float]:
    """The two rates at which the score statistic is z, from the quadratic that it solves."""
    p = num_success / num
    roots = np.roots([num + Z**2, -(2 * num * p + Z**2), num * p**2])
    return float(min(roots)), float(max(roots))


@pytest.mark.parametrize(("num_success", "num"), [(0, 16), (1, 16), (8, 16), (16, 16), (3, 400), (0, 1)])
def test_whole_rates_have_wilsons_interval(num_success: int, num: int) -> None:
    estimate = success_rate([1.0] * num_success + [0.0] * (num - num_success))
    assert (estimate.low, estimate.high) == pytest.approx(wilson(num_success, num), abs=1e-9)


@pytest.mark.parametrize("num", [1, 4, 16, 1000])
def test_none_and_all_are_no_certainties(num: int) -> None:
    none, every = success_rate([0.0] * num), success_rate([1.0] * num)
    assert (none.low, every.high) == (0, 1)
    assert none.high == pytest.approx(Z**2 / (num + Z**2)) == pytest.approx(1 - every.low)
    # The exact chance of seeing nothing at that rate is a few percent: Clopper and Pearson's limit is not far away.
    assert 0.005 < (1 - none.high) ** num < 0.25


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_of_rates_holds_its_mean_lies_between_0_and_1_and_has_a_width(rates: list[float]) -> None:
    estimate = success_rate(rates)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0
    mirrored = success_rate([1 - rate for rate in rates])
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((estimate.low, estimate.high), abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_an_interval_of_changes_holds_its_mean_and_mirrors(changes: list[float]) -> None:
    estimate = success_change(changes)
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high > estimate.low
    mirrored = success_change([-change for change in changes])
    assert (-mirrored.high, -mirrored.low) == pytest.approx((estimate.low, estimate.high), abs=1e-6)


@pytest.mark.parametrize("num", [10, 16, 200])
def test_nothing_changed_is_no_certainty_that_nothing_changes(num: int) -> None:
    estimate = success_change([0.0] * num)
    assert (estimate.low, estimate.high) == pytest.approx((-(Z**2) / (num + Z**2), Z**2 / (num + Z**2)))


@pytest.mark.parametrize(("gained", "lost", "same"), [(5, 0, 15), (3, 2, 10), (0, 1, 19), (12, 4, 4)])
def test_whole_changes_have_tangos_interval(gained: int, lost: int, same: int) -> None:
    """At both ends the statistic is z, with the variance at the rates that a search over all finds likeliest."""
    changes = [1.0] * gained + [-1.0] * lost + [0.0] * same
    estimate = success_change(changes)
    num = len(changes)
    for end in (estimate.low, estimate.high):
        lowest = max(0.0, -end)
        losses = np.linspace(lowest + 1e-9, (1 - end) / 2 - 1e-9, 200_001)
        likelihood = gained * np.log(losses + end) + lost * np.log(losses) + same * np.log(1 - 2 * losses - end)
        best = float(losses[np.nanargmax(likelihood)])
        variance = (2 * best + end - end**2) / num
        assert abs(estimate.value - end) / sqrt(variance) == pytest.approx(Z, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [(1, 1), (0.2, 0.2), (50, 50), (0.3, 3)])
@pytest.mark.parametrize(("num_problems", "num_samples"), [(20, 4), (100, 1), (100, 16)])
def test_both_cover_the_truth_at_least_as_often_as_they_say(
    spread: tuple[float, float], num_problems: int, num_samples: int
) -> None:
    rng = np.random.default_rng(3)
    truth, rates, changes = spread[0] / sum(spread), 0, 0
    for _ in range(200):
        chances = rng.beta(*spread, num_problems)
        first, second = (rng.binomial(num_samples, chances) / num_samples for _ in range(2))
        rate, change = success_rate(first), success_change(second - first)
        rates += rate.low <= truth <= rate.high
        changes += change.low <= 0 <= change.high
    assert rates >= 182
    assert changes >= 182


def test_both_are_as_narrow_as_the_normal_interval_for_many_problems() -> None:
    rng = np.random.default_rng(1)
    chances = rng.beta(2, 2, 2000)
    first, second = rng.binomial(4, chances) / 4, rng.binomial(4, np.clip(chances + 0.05, 0, 1)) / 4
    for estimate, values in ((success_rate(first), first), (success_change(second - first), second - first)):
        assert (estimate.high - estimate.low) / 2 == pytest.approx(Z * values.std() / sqrt(2000), rel=0.02)


@pytest.mark.parametrize("estimator", [success_rate, success_change])
@pytest.mark.parametrize("values", [[], [0.5, 1.2], [-1.1], [float("nan")]])
def test_values_that_are_no_rates_are_refused(estimator: object, values: list[float]) -> None:
    with pytest.raises(ValueError, match="one for each problem"):
        estimator(values)  # type: ignore[operator]

"""Estimates of success rates, and their 95% intervals.

    pass@k of one problem with c successes in n samples = 1 - C(n - c, k) / C(n, k)      (unbiased)
    interval of a success rate = Wilson's, for the effective number of problems            (success_rate)
    interval of a paired change = Tango's, likewise                                        (success_change)
    interval of any other mean = percentiles of the mean of values drawn with replacement  (bootstrap)
    interquartile mean = mean of the middle half of the values

Training and the report both use these. The module does not need torch, so that a page is written in half a second on
any machine that has the run folder.

Left out: the measured quantities themselves (``train.evaluation``, ``report``).

References: Chen et al. 2021, arXiv 2107.03374 (pass@k); Agarwal et al. 2021, arXiv 2108.13264 (interquartile mean over
runs); Wilson 1927, JASA 22:209 (interval of a proportion); Tango 1998, Statistics in Medicine 17:891 (of the difference
of paired proportions); Newcombe 1998, Statistics in Medicine 17:873 (the difference of two independent estimates from
their intervals). The effective number of problems for rates between 0 and 1 is our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.cards import Card

NUM_RESAMPLES = 2000
Z = 1.959963984540054
"""97.5% quantile of the normal distribution."""
_PRIOR = 0.5  # of a problem that varies like a coin, added to the sample; half a problem keeps the coverage at 95%


@dataclass(frozen=True, slots=True, repr=False)
class Estimate(Card):
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_success: int, k: int) -> float:
    """Estimate the chance that at least one of ``k`` samples succeeds: ``1 - C(n - c, k) / C(n, k)``.

    **Limits** ``k = 1`` is ``c / n``; ``k = n`` is 1 if ``c > 0`` and else 0.

    Raises:
        ValueError: ``k`` is not in ``[1, n]`` or ``c`` not in ``[0, n]``.
    """
    if not 1 <= k <= num_samples or not 0 <= num_success <= num_samples:
        raise ValueError(f"pass@{k} is undefined for {num_success} successes in {num_samples} samples")
    return 1.0 - math.comb(num_samples - num_success, k) / math.comb(num_samples, k)


def bootstrap(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Estimate:
    """Compute the mean of ``values`` and the percentile interval of its bootstrap distribution.

    **Limits** One value, or equal values, have an interval of width zero; an interval always holds its own mean.
    """
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(len(data), size=(NUM_RESAMPLES, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(data.mean())
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def success_rate(rates: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Compute the mean of success rates, one per problem, and its 95% interval.

    Wilson's interval ``|p - value| = z sqrt(p (1 - p) / m)`` for ``m = N (N q + 1/2) / (N s^2 + 1/2)`` problems with
    one sample each, where ``q = value (1 - value)`` and ``s^2`` is the variance of the rates. ``m`` is the effective
    number of problems. It exceeds ``N`` for rates between 0 and 1, which vary less than coins. Near 0 and 1, where
    rates show no such difference, each problem counts as one coin.

    **Limits** Rates that are all 0 or 1 have Wilson's interval itself: 0 of N gives ``[0, z^2 / (N + z^2)]``, N of N
    its mirror image. The interval holds its mean, lies in [0, 1], and has a width for equal rates. For many problems
    it is ``value +- z s / sqrt(N)``.

    Raises:
        ValueError: there is no rate, or one lies outside [0, 1].
    """
    data = _between(rates, 0.0)
    value = float(data.mean())
    worth = _worth(len(data), value * (1 - value), float(data.var()))
    shrink = 1 + Z**2 / worth
    centre = (value + Z**2 / (2 * worth)) / shrink
    half = Z / shrink * math.sqrt(max(0.0, value * (1 - value)) / worth + (Z / (2 * worth)) ** 2)
    return Estimate(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def success_change(changes: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Compute the mean change of success rates, one per problem that was tried twice, and its 95% interval.

    Tango's score interval of paired proportions, with the mean rise and the mean fall in place of the shares of
    problems that were gained and lost, for the effective number of problems (see ``success_rate``).

    **Limits** Changes that are all -1, 0 or 1 have Tango's interval itself; where nothing changed on N problems it is
    ``+- z^2 / (N + z^2)``. Changes of the other sign have the mirrored interval.

    Raises:
        ValueError: there is no change, or one lies outside [-1, 1].
    """
    data = _between(changes, -1.0)
    value = float(data.mean())
    rise, fall = float(data.clip(min=0).mean()), float((-data).clip(min=0).mean())
    worth = _worth(len(data), rise + fall - value**2, float(data.var()))

    def is_inside(change: float) -> bool:
        return (value - change) ** 2 * worth <= Z**2 * _variance_at(change, rise, fall)

    return Estimate(value, _edge(is_inside, value, -1.0), _edge(is_inside, value, 1.0))


def _between(values: Sequence[float] | NDArray[np.float64], least: float) -> NDArray[np.float64]:
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if not len(data) or not ((data >= least) & (data <= 1)).all():
        raise ValueError(f"an interval needs values from {least:g} to 1, one for each problem")
    return data


def _worth(num: int, binary: float, variance: float) -> float:
    """Compute the effective number of problems: with one sample each, they are as precise as ``num`` values.

    Args:
        binary: the variance if all values were whole numbers; never below ``variance``.
    """
    return num * (num * max(binary, variance) + _PRIOR) / (num * variance + _PRIOR)


def _variance_at(change: float, rise: float, fall: float) -> float:
    """Compute the variance of one pair's change at the most likely rates of gain and loss that differ by ``change``."""
    linear = (2 - rise + fall) * change - rise - fall
    lost = (math.sqrt(max(0.0, linear**2 + 8 * fall * change * (1 - change))) - linear) / 4
    return max(0.0, 2 * lost + change * (1 - change))


def _edge(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Find the end of an interval between ``inside``, which it holds, and ``outside``, to rounding."""
    if is_inside(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside


def difference(before: Estimate, after: Estimate) -> Estimate:
    """Estimate after minus before for two independent estimates, from their intervals alone.

    **Limits** Symmetric intervals of half-widths a and b give the half-width ``hypot(a, b)``.
    """
    value = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, value - down, value + up)


def interquartile_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Average the middle half of the values: a quarter of the weight is removed from each end, values in part.

    **Limits** Up to two values: their mean. Equal values: that value. One value moved to infinity among five or more
    changes it by a bounded amount.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    if len(data) < 3:
        return float(data.mean())
    edges = np.arange(len(data) + 1) / len(data)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    kept = weights > 0
    return float((data[kept] * weights[kept]).sum() / weights.sum())


def interquartile_estimate(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Estimate:
    """Compute the interquartile mean and the percentile interval of its bootstrap distribution over the values.

    **Limits** One value, or equal values, have an interval of width zero.
    """
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn = data[generator.integers(len(data), size=(NUM_RESAMPLES, len(data)))]
    low, high = np.quantile([interquartile_mean(row) for row in drawn], [0.025, 0.975])
    value = interquartile_mean(data)
    return Estimate(value, min(value, float(low)), max(value, float(high)))

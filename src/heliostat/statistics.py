"""Success rates and how sure they are.

    pass@k of one problem with c successes in n samples = 1 - C(n - c, k) / C(n, k)      (unbiased)
    interval = percentiles of the mean over problems drawn with replacement               (bootstrap)
    interquartile mean = mean of the middle half of the values

Training and the report both use these; nothing here needs torch, so that a page can be made in half a second on
whatever machine the run folder lies.

Left out: what is being estimated.

References: Chen et al. 2021, arXiv 2107.03374 (pass@k); Agarwal et al. 2021, arXiv 2108.13264 (interquartile mean over
runs); Newcombe 1998, Statistics in Medicine 17:873 (the difference
of two independent estimates from their intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_success: int, k: int) -> float:
    """Chance that at least one of ``k`` samples succeeds: ``1 - C(n - c, k) / C(n, k)``.

    **Limits** ``k = 1`` is ``c / n``; ``k = n`` is 1 if ``c > 0`` and else 0.

    Raises:
        ValueError: ``k`` is not in ``[1, n]`` or ``c`` not in ``[0, n]``.
    """
    if not 1 <= k <= num_samples or not 0 <= num_success <= num_samples:
        raise ValueError(f"pass@{k} is undefined for {num_success} successes in {num_samples} samples")
    return 1.0 - math.comb(num_samples - num_success, k) / math.comb(num_samples, k)


def bootstrap(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean of ``values`` and the percentile interval of its bootstrap distribution.

    **Limits** One value, or equal values, have an interval of width zero; an interval always holds its own mean.
    """
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(len(data), size=(NUM_RESAMPLES, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(data.mean())
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def difference(before: Estimate, after: Estimate) -> Estimate:
    """After minus before for two independent estimates, from their intervals alone.

    **Limits** Symmetric intervals of half-widths a and b give the half-width ``hypot(a, b)``.
    """
    value = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, value - down, value + up)


def interquartile_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half: a quarter of the weight is taken from each end, partly from a value if need be.

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
    """The interquartile mean and the percentile interval of its bootstrap distribution over the values.

    **Limits** One value, or equal values, have an interval of width zero.
    """
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn = data[generator.integers(len(data), size=(NUM_RESAMPLES, len(data)))]
    low, high = np.quantile([interquartile_mean(row) for row in drawn], [0.025, 0.975])
    value = interquartile_mean(data)
    return Estimate(value, min(value, float(low)), max(value, float(high)))

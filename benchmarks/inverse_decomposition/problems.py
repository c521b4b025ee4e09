"""The problems of the race: a random pattern with about four neighbours a row, and a covariance of condition 1e3.

Also the one yardstick every contender is judged by. Left out: timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A, and the symmetric boolean mask of the entries where B may be nonzero (diagonal included)."""

    covariance: FloatArray
    mask: NDArray[np.bool_]

    @property
    def num_parameters(self) -> int:
        return int(np.triu(self.mask).sum())


def random_problem(n: int, seed: int, condition: float = 1e3, neighbours: float = 4.0) -> Problem:
    """Eigenvalues log-uniform on a grid, eigenvectors Haar; every pair an edge with equal probability."""
    rng = np.random.default_rng([n, seed])
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    covariance = (vectors * np.logspace(0, -np.log10(condition), n)) @ vectors.T
    upper = np.triu(rng.random((n, n)) < neighbours / (n - 1), 1)
    return Problem((covariance + covariance.T) / 2, upper | upper.T | np.eye(n, dtype=bool))


def kkt_residual(problem: Problem, precision: FloatArray) -> float:
    """max |A - B⁻¹| on the pattern / max |A|, for B with everything off the pattern set to zero."""
    kept = np.where(problem.mask, (precision + precision.T) / 2, 0.0)
    gap = np.abs(problem.covariance - np.linalg.inv(kept))[problem.mask]
    return float(gap.max() / np.abs(problem.covariance).max())

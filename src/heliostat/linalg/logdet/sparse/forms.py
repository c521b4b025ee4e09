"""Matrices that are never written out: bands, partially known ones, and C as an operator.

Needs scipy (extra ``linalg``), imported where it is used. Left out: the decomposition of these (``banded``,
``chordal``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from heliostat.extras import named
from heliostat.linalg.logdet.inputs import unmasked
from heliostat.linalg.logdet.units import TOO_LARGE

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]
DENSE_ROWS = 20_000  # ``to_dense`` refuses beyond: 3 GB


def require_scipy() -> ModuleType:
    """Import scipy with the two submodules used here; ``ImportError`` says how to get it."""
    with named("a sparse or banded matrix"):
        import scipy.linalg
        import scipy.sparse.linalg
    module: ModuleType = scipy
    return module


class BandedMatrix:
    """A symmetric banded matrix by its lower diagonals, as ``scipy.linalg.solveh_banded(lower=True)`` stores it.

    Args:
        bands: shape (bandwidth + 1, n); ``bands[k, i]`` is entry (i + k, i); the last k entries of row k are ignored.

    Raises:
        ValueError: not a two-dimensional float array, more bands than rows, masked entries, NaN or infinity.
    """

    def __init__(self, bands: Any) -> None:
        array = np.asarray(unmasked(bands))
        if array.ndim != 2 or not 1 <= array.shape[0] <= array.shape[1]:
            raise ValueError(f"bands must have shape (bandwidth + 1, n) with bandwidth < n, got {array.shape}")
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"A has dtype {array.dtype}; convert it to float64 (or float32) first")
        self.bands: FloatArray = array.astype(np.float64)
        for offset in range(1, len(self.bands)):
            self.bands[offset, -offset:] = 0.0
        if not np.isfinite(self.bands).all():
            raise ValueError("A contains NaN or infinity")

    @classmethod
    def from_dense(cls, matrix: Any, bandwidth: int) -> BandedMatrix:
        """Return the diagonals 0..bandwidth of a square array."""
        array = np.asarray(unmasked(matrix))
        return cls(np.stack([np.pad(np.diagonal(array, -k), (0, k)) for k in range(bandwidth + 1)]))

    @property
    def n(self) -> int:
        return int(self.bands.shape[1])

    @property
    def bandwidth(self) -> int:
        return len(self.bands) - 1

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.n)

    def diagonal(self) -> FloatArray:
        """Return the entries (i, i)."""
        entries: FloatArray = self.bands[0]
        return entries

    def matvec(self, x: FloatArray) -> FloatArray:
        """Return the matrix times a vector or a matrix of columns."""
        bands = self.bands.reshape(self.bands.shape + (1,) * (np.ndim(x) - 1))
        out: FloatArray = bands[0] * x
        for offset in range(1, len(bands)):
            out[offset:] += bands[offset, :-offset] * x[:-offset]
            out[:-offset] += bands[offset, :-offset] * x[offset:]
        return out

    def to_sparse(self) -> Any:
        """Convert to a scipy.sparse CSC array."""
        sparse = require_scipy().sparse
        lower = [self.bands[k, : self.n - k] for k in range(len(self.bands))]
        offsets = list(range(len(self.bands)))
        return sparse.diags_array(lower + lower[1:], offsets=offsets + [-k for k in offsets[1:]]).tocsc()

    def to_dense(self) -> FloatArray:
        """As an n x n array; refuses beyond ``DENSE_ROWS``."""
        return self.matvec(_identity(self.n))

    def __repr__(self) -> str:
        return f"BandedMatrix(n={self.n}, bandwidth={self.bandwidth})"


@dataclass(frozen=True, slots=True)
class Partial:
    """A whose entries on the pattern alone are known: zeros elsewhere are not implied, and never read.

    A itself need not be positive definite, only its blocks on the pattern's cliques: a covariance of fewer samples than
    variables has a B on every chordal pattern whose cliques are smaller than its rank.

    Args:
        known: a ``BandedMatrix`` or a scipy.sparse matrix holding at least the entries on the pattern, or a numpy
            array with NaN for unknown entries; a pattern that is not chordal needs those of a chordal embedding too.
    """

    known: Any


@dataclass(frozen=True, slots=True)
class Remainder:
    """C = A - B⁻¹ as an operator: B⁻¹ is dense, so C is applied, not stored."""

    n: int
    matvec: Callable[[FloatArray], FloatArray]

    def to_dense(self) -> Float[np.ndarray, "n n"]:
        """As an n x n array; refuses beyond ``DENSE_ROWS``."""
        dense = self.matvec(_identity(self.n))
        return (dense + dense.T) / 2


def rescaled(matrix: Any, exponents: IntArray) -> Any:
    """diag(2^k) M diag(2^k) of a ``BandedMatrix`` or a scipy.sparse CSC array, digit for digit.

    Raises:
        ValueError: an entry of M is too large for its diagonal, so that M is not positive definite.
    """
    with np.errstate(over="ignore", under="ignore"):
        if isinstance(matrix, BandedMatrix):
            shifted = [exponents + np.roll(exponents, -offset) for offset in range(len(matrix.bands))]
            scaled: Any = BandedMatrix.__new__(BandedMatrix)
            scaled.bands = data = np.ldexp(matrix.bands, np.stack(shifted))
        else:
            scaled = matrix.copy()
            columns = np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
            scaled.data = data = np.ldexp(matrix.data, exponents[matrix.indices] + exponents[columns])
    if not np.isfinite(data).all():
        raise ValueError(TOO_LARGE)
    return scaled


def _identity(n: int) -> FloatArray:
    if n > DENSE_ROWS:
        raise ValueError(f"refusing to write out a dense {n} x {n} matrix; use matvec")
    return np.eye(n)

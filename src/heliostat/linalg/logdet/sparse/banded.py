"""The closed form on a band, in O(n b²) vector operations and O(n b) memory, with its own selected inversion.

With I = {i+1..i+b}:   ψ_i = A_II⁻¹ A_Ii,   D_i = 1/(A_ii - A_iI ψ_i),   B = Σ_i D_i (e_i - ψ_i)(e_i - ψ_i)ᵀ.

Every window is eliminated by the same few vector operations over all i at once. The inverse of a banded B on its band
obeys Σ_iI = ψ_iᵀ Σ_II, Σ_ii = 1/D_i + ψ_iᵀ Σ_II ψ_i, a recurrence over n that is affine in the window Σ_II: it runs
over √n segments side by side, once to find each segment's map and once with the right start. Left out: other
patterns.

References:
    Closed form: the banded case of Dempster (1972) and Grone et al. (1984). Reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from heliostat.linalg.logdet.sparse.forms import BandedMatrix, FloatArray, require_scipy

SEGMENT = 16_384  # rows per block, so that a block's windows stay in the processor's cache


@dataclass(frozen=True, slots=True)
class BandFactor:
    """B = L diag(pivots) Lᵀ with unit lower triangular L whose column i is e_i - Σ_k weights[k, i] e_{i+k+1}."""

    weights: Float[np.ndarray, "bandwidth n"]
    pivots: Float[np.ndarray, " n"]

    @property
    def log_det(self) -> float:
        """The log-determinant of B."""
        return float(np.log(self.pivots).sum())

    def solve(self, rhs: FloatArray) -> FloatArray:
        """B⁻¹ rhs."""
        linalg = require_scipy().linalg
        bandwidth, n = self.weights.shape
        lower = np.concatenate([np.ones((1, n)), -self.weights])
        upper = np.zeros_like(lower)
        for offset in range(bandwidth + 1):
            upper[bandwidth - offset, offset:] = lower[offset, : n - offset]
        half = linalg.solve_banded((bandwidth, 0), lower, rhs)
        half /= self.pivots.reshape((-1,) + (1,) * (np.ndim(rhs) - 1))
        return np.asarray(linalg.solve_banded((0, bandwidth), upper, half))


def factor_of_inverse(bands: Float[np.ndarray, "bands n"]) -> BandFactor:
    """Return the factor of B from the entries of A on the band.

    Raises:
        ValueError: some window of bandwidth + 1 rows of A is not positive definite; names the first.
    """
    bandwidth, n = len(bands) - 1, bands.shape[1]
    padded = np.concatenate([bands, np.zeros((bandwidth + 1, bandwidth))], 1)
    padded[0, n:] = 1.0
    weights, rest = np.empty((bandwidth, n)), np.empty(n)
    for start in range(0, n, SEGMENT):
        stop = min(start + SEGMENT, n)
        rest[start:stop], smallest = _eliminate(padded, start, stop, weights)
        if not smallest.min() > 0:
            row = start + int(np.flatnonzero(~(smallest > 0))[0])
            window = BandedMatrix(padded[:, row : row + bandwidth + 1]).to_dense()
            raise ValueError(
                f"A is not positive definite: rows {row}..{min(row + bandwidth, n - 1)} have smallest eigenvalue "
                f"{np.linalg.eigvalsh(window)[0]:.6g}"
            )
    return BandFactor(weights, 1 / rest)


def _eliminate(
    padded: FloatArray, start: int, stop: int, weights: FloatArray
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Eliminate rows b..1 of every window i..i+b; fills ψ and returns 1/D_i and the smallest pivot met."""
    band = len(padded) - 1
    window = [[padded[k - j, start + j : stop + j] for k in range(j, band + 1)] for j in range(band + 1)]
    smallest = np.full(stop - start, np.inf)
    for k in range(band, 0, -1):
        pivot = window[k][0]
        smallest = np.minimum(smallest, pivot)
        safe = np.where(pivot > 0, pivot, 1.0)
        ratios = [window[j][k - j] / safe for j in range(k)]
        for j in range(k):
            for other in range(j, k):
                window[j][other - j] = window[j][other - j] - ratios[j] * window[other][k - other]
        for j in range(k):
            window[j][k - j] = ratios[j]
    for k in range(1, band + 1):
        value = window[0][k]
        for j in range(1, k):
            value = value - window[j][k - j] * weights[j - 1, start:stop]
        weights[k - 1, start:stop] = value
    return window[0][0], np.minimum(smallest, window[0][0])


def assemble(factor: BandFactor) -> BandedMatrix:
    """B = L D Lᵀ written out on its band."""
    bandwidth, n = factor.weights.shape
    column = np.concatenate([np.ones((1, n)), -factor.weights])
    bands = np.zeros_like(column)
    for j in range(bandwidth + 1):
        scaled = factor.pivots * column[j]
        for k in range(j, bandwidth + 1):
            bands[k - j, j:] += (scaled * column[k])[: n - j]
    return BandedMatrix(bands)


def cholesky(matrix: BandedMatrix) -> BandFactor | None:
    """Return the factor of a banded matrix itself (LAPACK), or ``None`` where it is not positive definite."""
    lapack = require_scipy().linalg.lapack
    if matrix.bandwidth == 1:
        pivots, ratios, info = lapack.dpttrf(matrix.bands[0], matrix.bands[1, :-1])
        return BandFactor(-np.append(ratios, 0.0)[None], pivots) if info == 0 else None
    lower, info = lapack.dpbtrf(matrix.bands, lower=1)
    return BandFactor(-lower[1:] / lower[0], lower[0] ** 2) if info == 0 else None


def inverse_on_band(factor: BandFactor) -> Float[np.ndarray, "bands n"]:
    """Return the entries of B⁻¹ on the band of B, from B's factor."""
    bandwidth, n = factor.weights.shape
    if bandwidth == 0:
        return 1 / factor.pivots[None]
    if bandwidth == 1:
        return _inverse_on_tridiagonal(factor)
    segments = max(1, math.isqrt(n))
    length = -(-n // segments)
    padding = segments * length - n
    weights = np.pad(factor.weights, ((0, 0), (0, padding))).T.reshape(segments, length, bandwidth)
    variances = np.pad(1 / factor.pivots, (0, padding), constant_values=1.0).reshape(segments, length)
    weights, variances = np.ascontiguousarray(weights.swapaxes(0, 1)), np.ascontiguousarray(variances.T)
    starts = _segment_starts(weights, variances)
    out = np.empty((length, segments, bandwidth + 1))
    window = starts
    for step in range(length - 1, -1, -1):
        window, out[step] = _previous_window(window, weights[step], variances[step])
    bands = out.transpose(2, 1, 0).reshape(bandwidth + 1, segments * length)[:, :n].copy()
    for offset in range(1, bandwidth + 1):
        bands[offset, n - offset :] = 0.0
    return bands


def _inverse_on_tridiagonal(factor: BandFactor) -> FloatArray:
    """Σ_ii - ψ_i² Σ_i+1,i+1 = 1/D_i is one bidiagonal system, which LAPACK runs through faster than segments."""
    weights = factor.weights[0]
    system = np.ones((2, len(weights)))
    system[0, 1:] = -(weights[:-1] ** 2)
    variances = require_scipy().linalg.solve_banded((0, 1), system, 1 / factor.pivots, check_finite=False)
    across = np.append(weights[:-1] * variances[1:], 0.0)
    return np.stack([variances, across])


def _previous_window(window: FloatArray, weights: FloatArray, variances: FloatArray) -> tuple[FloatArray, FloatArray]:
    """From Σ on i+1..i+b to Σ on i..i+b-1, for every segment; and row i of Σ on i..i+b."""
    across = (window @ weights[:, :, None])[:, :, 0]
    corner = variances + (weights * across).sum(1)
    row = np.concatenate([corner[:, None], across], 1)
    moved = np.empty_like(window)
    moved[:, 0, :] = moved[:, :, 0] = row[:, :-1]
    moved[:, 1:, 1:] = window[:, :-1, :-1]
    return moved, row


def _segment_starts(weights: FloatArray, variances: FloatArray) -> FloatArray:
    """Return the window Σ just after each segment: run the affine map of every segment, then chain the maps."""
    length, segments, bandwidth = weights.shape
    offset: FloatArray = np.zeros((segments, bandwidth, bandwidth))
    transition = np.broadcast_to(np.eye(bandwidth), offset.shape).copy()
    for step in range(length - 1, -1, -1):
        offset, _ = _previous_window(offset, weights[step], variances[step])
        top = weights[step][:, None, :] @ transition
        transition = np.concatenate([top, transition[:, :-1]], 1)
    starts: FloatArray = np.empty_like(offset)
    starts[-1] = np.eye(bandwidth)  # the padding after the last row
    for segment in range(segments - 1, 0, -1):
        map_ = transition[segment]
        starts[segment - 1] = map_ @ starts[segment] @ map_.T + offset[segment]
    return starts

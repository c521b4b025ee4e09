"""The entry point for A in sparse storage: banded, tree, chordal and nearly chordal patterns of millions of rows.

The certificate is measured on the B that is returned: it is factorised again and its inverse compared with A on the
pattern. With R = Π_{S⊥}(A - B⁻¹) the duality gap tr(BR) - log det(I + BR) is bounded by x²/(2(1 - x)),
x = ‖B‖_∞ ‖R‖_F. All of it happens in units of every variable's own (``units``). Left
out: subspaces other than sparsity patterns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from heliostat.linalg.logdet.inputs import unmasked
from heliostat.linalg.logdet.methods import Options, dual_newton_cg
from heliostat.linalg.logdet.result import Certificate, ConvergenceError, InverseDecomposition
from heliostat.linalg.logdet.sparse import banded, chordal, embedding
from heliostat.linalg.logdet.sparse.forms import BandedMatrix, FloatArray, Partial, Remainder, require_scipy, rescaled
from heliostat.linalg.logdet.subspaces.base import Subspace
from heliostat.linalg.logdet.subspaces.pattern import BandedPattern, IntArray, SparsityPattern
from heliostat.linalg.logdet.units import check_held, unit_exponents


def is_sparse(matrix: Any) -> bool:
    """Return whether A comes in a storage that this package reads."""
    return isinstance(matrix, BandedMatrix | Partial) or (hasattr(matrix, "tocsc") and hasattr(matrix, "nnz"))


def decompose_sparse(
    A: Any, subspace: Subspace, *, method: str, tolerance: float, max_steps: int
) -> InverseDecomposition:
    """Compute ``inverse_decomposition`` of a banded, scipy.sparse or partially known A."""
    partial = isinstance(A, Partial)
    matrix = A.known if isinstance(A, Partial) else A
    if not is_sparse(matrix) and not isinstance(matrix, np.ndarray):
        raise ValueError(
            f"Partial takes a BandedMatrix, a scipy.sparse matrix or a numpy array, got {type(matrix).__name__}"
        )
    if not isinstance(subspace, SparsityPattern):
        raise ValueError(f"a sparse A needs a SparsityPattern, got {type(subspace).__name__}; pass A dense instead")
    if method not in ("auto", "closed_form"):
        raise ValueError(f"method {method!r} is for dense A; a sparse A takes 'auto' or 'closed_form'")
    if tuple(matrix.shape) != (subspace.n, subspace.n):
        raise ValueError(f"A has shape {tuple(matrix.shape)} but the subspace has n={subspace.n}")
    if isinstance(matrix, np.ndarray):
        matrix = _known_entries(unmasked(matrix))
    matrix = matrix if isinstance(matrix, BandedMatrix) else _checked(matrix)
    exponents = unit_exponents(matrix.diagonal())
    matrix = rescaled(matrix, -exponents)
    try:
        if isinstance(matrix, BandedMatrix) and isinstance(subspace, BandedPattern):
            found = _on_band(matrix, partial, subspace)
        else:
            stored = matrix.to_sparse() if isinstance(matrix, BandedMatrix) else _symmetric(matrix)
            found = _on_pattern(stored, partial, subspace, method, max_steps)
    except ConvergenceError as error:
        raise ConvergenceError(str(error), _written(error.best, exponents)) from None
    check_held(found.B.diagonal(), exponents, "float64")
    result = _written(found, exponents)
    if not result.certificate.residual <= tolerance:
        raise ConvergenceError(
            f"B leaves a relative residual of {result.certificate.residual:.1e} (asked: {tolerance:.1e}), see `best`",
            result,
        )
    return result


def _written(found: InverseDecomposition, exponents: IntArray) -> InverseDecomposition:
    """B and C in the caller's units."""
    own = found.C

    def matvec(x: FloatArray) -> FloatArray:
        shifts = exponents.reshape(-1, *(1 for _ in np.shape(x)[1:]))
        return np.asarray(np.ldexp(own.matvec(np.ldexp(x, shifts)), shifts))

    C = own and Remainder(own.n, matvec)
    return InverseDecomposition(rescaled(found.B, -exponents), C, found.kl, found.certificate)


def _on_band(matrix: BandedMatrix, partial: bool, pattern: BandedPattern) -> InverseDecomposition:
    width = pattern.bandwidth
    if partial and matrix.bandwidth < width:
        raise ValueError(f"the pattern has bandwidth {width} but only {matrix.bandwidth} diagonals of A are known")
    log_det_A = None
    if not partial:
        factor_A = banded.cholesky(matrix)
        if factor_A is None:
            raise ValueError(
                "A is not positive definite as a matrix that is zero outside its band; if those entries are merely "
                "unknown, pass Partial(A)"
            )
        log_det_A = factor_A.log_det
    bands = np.zeros((width + 1, pattern.n))
    shared = min(width, matrix.bandwidth) + 1
    bands[:shared] = matrix.bands[:shared]
    B = banded.assemble(banded.factor_of_inverse(bands))
    factor = banded.cholesky(B)
    if factor is None:
        raise _lost_to_rounding(B, "closed_form", 0)
    residual = bands - banded.inverse_on_band(factor)
    twice = np.where(np.arange(width + 1) > 0, 2.0, 1.0)[:, None]
    row_sums = np.abs(B.bands[0]).copy()
    for offset in range(1, width + 1):
        row_sums[offset:] += np.abs(B.bands[offset, :-offset])
        row_sums[:-offset] += np.abs(B.bands[offset, :-offset])
    trace_error = float((twice * bands * B.bands).sum()) - pattern.n
    norm = float(np.sqrt((twice * residual**2).sum()))
    certificate = Certificate(
        float(np.abs(residual).max() / np.abs(bands).max()),
        _gap_bound(float(row_sums.max()), norm),
        trace_error,
        0,
        "closed_form",
    )
    C = None if partial else Remainder(pattern.n, lambda x: matrix.matvec(x) - factor.solve(x))
    return InverseDecomposition(B, C, _divergence(trace_error, log_det_A, factor.log_det), certificate)


def _on_pattern(
    matrix: Any, partial: bool, pattern: SparsityPattern, method: str, max_steps: int
) -> InverseDecomposition:
    if pattern.is_chordal:
        entries, own, steps = chordal.PatternEntries(pattern), None, 0
        values = _values(entries, matrix, partial)
        found, name = chordal.closed_form(entries, values)[0], "closed_form"
    elif method == "closed_form":
        raise ValueError(f"method 'closed_form' does not apply to {pattern!r}: it is not chordal; use method='auto'")
    else:
        embedded = embedding.Embedding(pattern)
        entries, own = embedded.entries, embedded.own
        values = _values(entries, matrix, partial)
        if embedded.is_dense:
            found, steps, name = _dense_newton(entries, own, values, pattern, max_steps)
        else:
            found, steps = embedding.solve(embedded, values, max_steps)
            name = "chordal_embedding"
        found[embedded.fill] = 0.0
    B = entries.write(found, own)
    return _package(matrix, partial, B, entries, values, found, own, Certificate(0.0, 0.0, 0.0, steps, name))


def _dense_newton(
    entries: chordal.PatternEntries, own: IntArray, values: FloatArray, pattern: SparsityPattern, max_steps: int
) -> tuple[FloatArray, int, str]:
    """Solve over B's parameters with dense matrices, which reads A on the pattern alone."""
    known = torch.from_numpy(entries.write(values, own).toarray())[None]
    solution = dual_newton_cg(known, pattern, Options(max_steps=max_steps))
    return solution.B[0].numpy()[entries.rows, entries.cols], solution.iterations, solution.method


def _values(entries: chordal.PatternEntries, matrix: Any, partial: bool) -> FloatArray:
    values, missing = entries.read(matrix)
    if partial and len(missing):
        row, col = entries.rows[missing[0]], entries.cols[missing[0]]
        raise ValueError(
            f"the pattern needs entry ({row}, {col}) of A, which is not stored (of {len(missing)} missing)"
        )
    try:
        chordal.closed_form(entries, values)
    except np.linalg.LinAlgError as error:
        largest = max(group.separators.shape[1] + group.residuals.shape[1] for group in entries.groups)
        raise ValueError(
            "A is not positive definite: some clique of the pattern is not; a covariance needs more samples than the "
            f"largest clique has rows ({largest}), or a multiple of the identity added to it"
        ) from error
    return values


def _package(
    matrix: Any,
    partial: bool,
    B: Any,
    entries: chordal.PatternEntries,
    values: FloatArray,
    found: FloatArray,
    own: Any,
    draft: Certificate,
) -> InverseDecomposition:
    inverse = chordal.inverse_on_pattern(entries, found)
    if inverse is None:
        raise _lost_to_rounding(B, draft.method, draft.iterations)
    kept = slice(None) if own is None else own
    residual = (values - inverse[0])[kept]
    twice = np.where(entries.rows == entries.cols, 1.0, 2.0)[kept]
    trace_error = float((twice * values[kept] * found[kept]).sum()) - entries.n
    norm = float(np.sqrt((twice * residual**2).sum()))
    certificate = Certificate(
        float(np.abs(residual).max() / np.abs(values[kept]).max()),
        _gap_bound(float(np.abs(B).sum(1).max()), norm),
        trace_error,
        draft.iterations,
        draft.method,
    )
    log_det_A = None if partial else _log_det(matrix)
    C = None if partial else Remainder(entries.n, _remainder(matrix, B))
    return InverseDecomposition(B, C, _divergence(trace_error, log_det_A, inverse[1]), certificate)


def _known_entries(matrix: FloatArray) -> Any:
    """Store the entries of a dense matrix that are not NaN, zeros included."""
    places = np.nonzero(matrix == matrix)
    return require_scipy().sparse.csc_array((matrix[places], places), shape=matrix.shape)


def _checked(matrix: Any) -> Any:
    stored = require_scipy().sparse.csc_array(matrix)
    if stored.dtype not in (np.float32, np.float64):
        raise ValueError(f"A has dtype {stored.dtype}; convert it to float64 (or float32) first")
    stored = stored.astype(np.float64)
    if not np.isfinite(stored.data).all():
        raise ValueError("A contains NaN or infinity")
    return stored


def _symmetric(stored: Any) -> Any:
    gap = np.abs(stored - stored.T).max()
    if gap > 1e-9 * np.abs(stored).max():
        raise ValueError(f"A is not symmetric: entries differ from their mirror by up to {gap:.3g} of their diagonal's")
    return stored


def _factorise(matrix: Any) -> Any:
    """SuperLU in symmetric mode, without row exchanges: the pivots of a positive definite matrix are all positive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # efficiency advice about index types
        return require_scipy().sparse.linalg.splu(
            matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )


def _log_det(matrix: Any) -> float:
    pivots = _factorise(matrix).U.diagonal()
    if not (pivots > 0).all():
        raise ValueError(
            "A is not positive definite as a matrix that is zero where nothing is stored; if those entries are merely "
            "unknown, pass Partial(A)"
        )
    return float(np.log(pivots).sum())


def _remainder(matrix: Any, B: Any) -> Callable[[FloatArray], FloatArray]:
    kept: list[Any] = []

    def matvec(x: FloatArray) -> FloatArray:
        if not kept:
            kept.append(_factorise(B))
        return np.asarray(matrix @ x - kept[0].solve(x))

    return matvec


def _lost_to_rounding(B: Any, method: str, iterations: int) -> ConvergenceError:
    infinite = float("inf")
    best = InverseDecomposition(B, None, None, Certificate(infinite, infinite, infinite, iterations, method))
    return ConvergenceError("B lost positive definiteness to rounding: A is too ill-conditioned for this storage", best)


def _gap_bound(row_sum: float, residual_norm: float) -> float:
    x = row_sum * residual_norm
    return x * x / (2 * (1 - x)) if x < 1 else float("inf")


def _divergence(trace_error: float, log_det_A: float | None, log_det_B: float) -> float | None:
    return None if log_det_A is None else (trace_error - log_det_A - log_det_B) / 2

"""The entry point: check A, choose the method, certify the result, and return it in the caller's own kind.

    A = B⁻¹ + C,   B ≻ 0 in S⊥,   C in S,   ⟨X, Y⟩ = tr(XY)

B minimises -log det B + tr(AB) over S⊥, so it is the member closest to A⁻¹ in Kullback–Leibler divergence. Left out:
the iterations (``methods``), sparse storage (``sparse``), derivatives (``implicit``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heliostat.linalg.logdet import implicit
from heliostat.linalg.logdet.certificate import Evidence, measure
from heliostat.linalg.logdet.existence import restore_definiteness
from heliostat.linalg.logdet.inputs import DenseInput, read_dense, require_positive_definite
from heliostat.linalg.logdet.methods import METHODS, Options, Solution, unit_scaling
from heliostat.linalg.logdet.result import Certificate, ConvergenceError, InverseDecomposition
from heliostat.linalg.logdet.sparse import decompose_sparse, is_sparse
from heliostat.linalg.logdet.subspaces.base import Subspace, symmetric_stack
from heliostat.linalg.logdet.subspaces.pattern import SparsityPattern
from heliostat.linalg.logdet.units import Units, check_held


def inverse_decomposition(
    A: Any,
    subspace: Subspace,
    *,
    method: str = "auto",
    start: Any = None,
    tolerance: float = 1e-10,
    max_steps: int = 200,
) -> InverseDecomposition:
    """Compute the unique B ≻ 0 in S⊥ and C in S with A = B⁻¹ + C.

    Args:
        A: positive definite, (n, n) or a batch (..., n, n), numpy or torch, float32 or float64; or a
            ``BandedMatrix``, a scipy.sparse matrix, or ``Partial`` of one or of a numpy array, for patterns.
        subspace: S, the home of C; every ``Subspace`` object documents both sides, ``ComplementOf`` swaps them.
        method: ``auto`` or a name from ``METHODS``.
        start: a positive definite B ∈ S⊥ to start dual Newton from (a warm start); dense A only.
        tolerance: largest accepted ``certificate.residual``. For float32 input the float64 answer must meet it; the
            certificate then describes the rounded arrays.
        max_steps: Newton steps before giving up.

    Returns:
        B and C in the kind and dtype of A, KL(N(0,A) ‖ N(0,B⁻¹)), and the certificate. B and C of a tensor that
        requires gradients are differentiable once, by implicit differentiation.

    Raises:
        ValueError: A is not square, symmetric, finite, floating point or positive definite, or hides entries behind a
            mask; the subspace has another n or leaves no room for B; the method is unknown or does not apply; B leaves
            the range of its dtype.
        DegenerateSubspaceError: (a ``ValueError``) S contains a positive semidefinite direction, the ``witness``.
        ConvergenceError: the tolerance was not reached; ``best`` is the best feasible result.

    **Limits**: tr(AB) = n and det B⁻¹ ≥ det A always. S = {0} gives B = A⁻¹; a diagonal pattern B = diag(1/A_ii); a
        block-diagonal one B_bb = A_bb⁻¹. A → tA gives B/t and tC. For invertible G, (GAGᵀ, GSGᵀ) gives
        (G⁻ᵀBG⁻¹, GCGᵀ). A⁻¹ ∈ S⊥ gives C = 0. For t = 4^k, and on patterns for diagonal G of powers of two, these
        hold digit for digit, as far as A and B are normal numbers of their dtype.

    References:
        T. W. Anderson (1970), linear concentration models; A. P. Dempster (1972), covariance selection; R. Grone,
        C. R. Johnson, E. M. Sá, H. Wolkowicz (1984), maximum-determinant completion: existence and uniqueness are
        theirs. Y. Dolinsky, O. Zuk (2026), arXiv 2601.18662: this form of it. Reconstruction throughout.
    """
    if not isinstance(subspace, Subspace):
        raise ValueError(
            f"subspace must be a Subspace, got {type(subspace).__name__}: wrap matrices as SpanOf(matrices) if they "
            "span C's space, or ComplementOf(SpanOf(matrices)) if they span B's"
        )
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if start is not None and (is_sparse(A) or method not in ("auto", "dual_newton", "dual_newton_cg")):
        raise ValueError("start= is for dual Newton on a dense A; leave it out here, or use method='dual_newton'")
    if subspace.codimension == 0:
        raise ValueError("the complement of this subspace has dimension zero: no B is left to find")
    if is_sparse(A):
        return decompose_sparse(A, subspace, method=method, tolerance=tolerance, max_steps=max_steps)
    dense = read_dense(A, subspace.rescales)
    if dense.stack.shape[-1] != subspace.n:
        raise ValueError(f"A has {dense.stack.shape[-1]} rows but the subspace has n={subspace.n}")
    factor = require_positive_definite(dense.stack, dense.units, isinstance(subspace, SparsityPattern))
    solution = _solve(dense, subspace, method, start, max_steps)
    evidence = measure(dense.stack, factor, solution.B, subspace)
    result = _package(dense, factor, solution, evidence, subspace)
    worst = float(evidence.residual.max())
    if not worst <= tolerance:
        raise ConvergenceError(
            f"the best feasible B leaves a relative residual of {worst:.1e} on S⊥ (asked: {tolerance:.1e}) after "
            f"{solution.iterations} steps of {solution.method}; `best` holds it",
            result,
        )
    return result


def _solve(dense: DenseInput, subspace: Subspace, method: str, start: Any, max_steps: int) -> Solution:
    """Run the method on A scaled to unit diagonal, and scale B back."""
    stack = dense.stack
    scaling = unit_scaling(stack, subspace)
    weights = scaling[:, :, None] * scaling[:, None, :]
    options = Options(max_steps=max_steps)
    if start is not None:
        options = Options(
            start=_read_start(start, dense.units, subspace).to(stack.device) / weights, max_steps=max_steps
        )
    solution = METHODS[method](stack * weights, subspace, options)
    if solution is None:
        raise ValueError(f"method {method!r} does not apply to {subspace!r} with this A; use method='auto'")
    B = restore_definiteness(solution.B, stack * weights, subspace)
    return Solution(B * weights, solution.iterations, solution.method)


def _read_start(start: Any, units: Units, subspace: Subspace) -> Tensor:
    stack = units.read_precision(symmetric_stack(start, subspace.n).expand(len(units.exponents), -1, -1))
    if not subspace.complement_contains(stack, 1e-6):
        raise ValueError("start is not in the complement of the subspace, where B lives")
    stack = subspace.project_complement_stack(stack)
    if bool((torch.linalg.cholesky_ex(stack).info != 0).any()):
        raise ValueError("start is not positive definite")
    return stack


def _certificate(evidence: Evidence, solution: Solution) -> Certificate:
    """Return the certificate of the worst member."""
    return Certificate(
        residual=float(evidence.residual.max()),
        duality_gap=float(evidence.duality_gap.max()),
        trace_error=float(evidence.trace_error[evidence.trace_error.abs().argmax()]),
        iterations=solution.iterations,
        method=solution.method,
    )


def _package(
    dense: DenseInput, factor: Tensor, solution: Solution, evidence: Evidence, subspace: Subspace
) -> InverseDecomposition:
    """Convert to the caller's units and kind; the cost of rounding to its dtype is measured, not assumed."""
    units, certificate = dense.units, _certificate(evidence, solution)
    B, C, kl = units.write_precision(solution.B), units.write(evidence.C), dense.scalar(evidence.kl)
    rounded, remainder = dense.restore(B), dense.restore(C)
    dtype = str(rounded.dtype).removeprefix("torch.")
    check_held(solution.B.diagonal(dim1=-2, dim2=-1).cpu().numpy(), units.exponents, dtype)
    if not bool(torch.as_tensor(remainder).isfinite().all() | evidence.C.isnan().any()):
        raise ValueError(f"C would have entries that {dtype} cannot hold; give A in larger units (C of t A is t C)")
    if dtype == "float32":
        kept = units.read_precision(torch.as_tensor(rounded).to(torch.float64).reshape(B.shape))
        certificate = _certificate(measure(dense.stack, factor, kept, subspace), solution)
        if certificate.residual == float("inf"):
            best = InverseDecomposition(B, C, kl, _certificate(evidence, solution))
            raise ConvergenceError(
                "B loses positive definiteness when rounded to float32; pass A as float64 (`best` is in float64)", best
            )
    if dense.original is None:
        return InverseDecomposition(rounded, remainder, kl, certificate)
    return _attached(dense, solution.B, evidence.C, subspace, certificate)


def _attached(
    dense: DenseInput, B: Tensor, C: Tensor, subspace: Subspace, certificate: Certificate
) -> InverseDecomposition:
    """Attach B and C to the caller's A for differentiation."""
    assert dense.original is not None
    covariance = dense.units.read(dense.original)
    B, C = implicit.attach(covariance, B, C, subspace)
    kl = implicit.divergence(covariance, B, subspace.n)
    return InverseDecomposition(dense.units.write_precision(B), dense.units.write(C), kl, certificate)

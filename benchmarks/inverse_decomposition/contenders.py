"""The contenders: each takes a problem and returns B. Warm-up is separate, so that compiling kernels is not charged.

cvxpy's own problem compilation is charged, because a user pays it on every call. Left out: measuring.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import FloatArray, Problem

Solver = Callable[[Problem], FloatArray]


def ours(problem: Problem) -> FloatArray:
    """The library call with its checks and certificate; the pattern object is built inside, too."""
    from heliostat.linalg import SparsityPattern, inverse_decomposition

    return inverse_decomposition(problem.covariance, SparsityPattern.from_mask(problem.mask)).B


def gglasso(tolerance: float) -> Solver:
    """GGLasso's ADMM for the graphical lasso with an infinite penalty (1e3) off the pattern and none on it."""

    def solve(problem: Problem) -> FloatArray:
        from gglasso.solver.single_admm_solver import ADMM_SGL

        scale = 1 / np.sqrt(np.diag(problem.covariance))
        scaled = problem.covariance * scale[:, None] * scale
        with contextlib.redirect_stdout(io.StringIO()):
            solution, _ = ADMM_SGL(
                scaled,
                1e3,
                np.eye(len(scaled)),
                tol=tolerance,
                rtol=tolerance,
                max_iter=20_000,
                lambda1_mask=np.where(problem.mask, 0.0, 1.0),
            )
        return solution["Theta"] * scale[:, None] * scale

    return solve


def cvxpy(solver: str, **settings: Any) -> Solver:
    """Minimise tr(AB) - log det B with B's entries off the pattern fixed to zero, modelled in cvxpy."""

    def solve(problem: Problem) -> FloatArray:
        import cvxpy as cp

        precision = cp.Variable(problem.covariance.shape, symmetric=True)
        rows, cols = np.nonzero(np.triu(~problem.mask))
        objective = cp.trace(problem.covariance @ precision) - cp.log_det(precision)
        constraints = [precision[rows, cols] == 0] if len(rows) else []
        cp.Problem(cp.Minimize(objective), constraints).solve(solver=solver, **settings)
        if precision.value is None:
            raise RuntimeError(f"{solver} returned nothing")
        return np.asarray(precision.value)

    return solve


CONTENDERS: dict[str, Solver] = {
    "heliostat": ours,
    "GGLasso 1e-7": gglasso(1e-7),
    "GGLasso 1e-12": gglasso(1e-12),
    "SCS 1e-8": cvxpy("SCS", eps=1e-8, max_iters=200_000),
    "Clarabel": cvxpy("CLARABEL"),
}

# Sizes each contender is asked for: as far as it finishes in minutes and gigabytes.
LARGEST = {"heliostat": 1000, "GGLasso 1e-7": 300, "GGLasso 1e-12": 300, "SCS 1e-8": 300, "Clarabel": 100}
REPEATS = {"heliostat": 7, "GGLasso 1e-7": 3, "GGLasso 1e-12": 3, "SCS 1e-8": 1, "Clarabel": 1}

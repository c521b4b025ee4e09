"""Closed forms and Newton against a general convex solver that knows only the optimisation problem.

Needs cvxpy with Clarabel (extra ``linalg-peers``); skipped without.
"""

import numpy as np
import pytest

from heliostat.linalg import inverse_decomposition
from tests.unit.linalg.logdet.problems import SUBSPACES, covariance, dense_basis

cvxpy = pytest.importorskip("cvxpy", reason="the oracle is cvxpy: pip install 'heliostat[linalg-peers]'")


@pytest.mark.peers
@pytest.mark.parametrize("name", SUBSPACES)
def test_same_minimum_as_a_conic_solver(name):
    subspace, A = SUBSPACES[name](), covariance(12, condition=20.0)
    B = cvxpy.Variable((12, 12), symmetric=True)
    spanning = dense_basis(subspace)
    constraints = [spanning @ cvxpy.vec(B, order="C") == 0] if len(spanning) else []
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace(A @ B) - cvxpy.log_det(B)), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    result = inverse_decomposition(A, subspace)
    ours = np.trace(A @ result.B) - np.linalg.slogdet(result.B)[1]
    assert ours <= problem.value + 1e-7
    assert abs(ours - problem.value) < 1e-6
    np.testing.assert_allclose(result.B, B.value, atol=1e-3 * np.abs(result.B).max())

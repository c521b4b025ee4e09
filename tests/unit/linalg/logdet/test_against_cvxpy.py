"""Closed forms and Newton against a general convex solver that knows only the optimisation problem.

Needs cvxpy with Clarabel (extra ``linalg-peers``); skipped without.
"""

import numpy as np
import pytest

from heliostat.linalg import ComplementOf, inverse_decomposition
from tests.support.logdet_problems import SUBSPACES, covariance, dense_basis

cvxpy = pytest.importorskip("cvxpy", reason="the oracle is cvxpy: pip install 'heliostat[linalg-peers]'")


@pytest.mark.peers
@pytest.mark.parametrize("name", SUBSPACES)
def test_same_minimum_as_a_conic_solver(name):
    subspace, A = SUBSPACES[name](), covariance(12, condition=20.0)
    spanning = dense_basis(ComplementOf(subspace))
    weights = cvxpy.Variable(len(spanning))
    B = cvxpy.reshape(spanning.T @ weights, (12, 12), order="C")
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace(A @ B) - cvxpy.log_det(B)))
    problem.solve(solver="CLARABEL")
    result = inverse_decomposition(A, subspace)
    ours = np.trace(A @ result.B) - np.linalg.slogdet(result.B)[1]
    assert ours <= problem.value + 1e-7
    assert abs(ours - problem.value) < 1e-6
    np.testing.assert_allclose(result.B, B.value, atol=1e-3 * np.abs(result.B).max())

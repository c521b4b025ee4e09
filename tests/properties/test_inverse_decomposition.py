"""Random subspaces of random dimension, in random storage: the decomposition holds, or a witness says why it cannot."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from heliostat.linalg import (
    ComplementOf,
    ConvergenceError,
    DegenerateSubspaceError,
    LowRank,
    SpanOf,
    SparsityPattern,
    inverse_decomposition,
    kronecker_sum_from_marginals,
)

METHODS = st.sampled_from(["auto", "dual_newton", "dual_newton_cg", "primal_newton", "primal_newton_cg"])
seeds = st.integers(0, 2**32 - 1)


def random_covariance(rng, n, condition):
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (vectors * condition ** -rng.random(n)) @ vectors.T
    return (matrix + matrix.T) / 2


def random_member(rng, n, kind):
    """Dense, factored or zero-diagonal."""
    if kind == "low rank":
        core = rng.normal(size=(2, 2))
        return LowRank(rng.normal(size=(n, 2)), core + core.T)
    matrix = rng.normal(size=(n, n))
    matrix = matrix + matrix.T
    return matrix - np.diag(np.diag(matrix)) if kind == "zero diagonal" else matrix


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(2, 7))
    size = draw(st.integers(0, n * (n + 1) // 2 - 1))
    kinds = draw(st.lists(st.sampled_from(["dense", "low rank", "zero diagonal"]), min_size=size, max_size=size))
    subspace = SpanOf([random_member(rng, n, kind) for kind in kinds], n=n)
    if draw(st.booleans()):
        subspace = ComplementOf(subspace)
    return random_covariance(rng, n, draw(st.sampled_from([1.0, 1e2, 1e4]))), subspace


def attempt(A, subspace, method):
    """The result, or the refusal."""
    try:
        return inverse_decomposition(A, subspace, method=method)
    except (DegenerateSubspaceError, ConvergenceError) as refusal:
        return refusal


def assert_decomposes(A, subspace, result):
    assert np.linalg.eigvalsh(result.B)[0] > 0
    assert subspace.complement_contains(result.B, 1e-9)
    assert subspace.contains(result.C, 1e-9) or np.abs(result.C).max() < 1e-9
    np.testing.assert_allclose(np.linalg.inv(result.B) + result.C, A, atol=1e-8 * max(1, np.abs(result.C).max()))
    assert abs(np.trace(A @ result.B) - len(A)) < 1e-7


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(problems(), METHODS)
def test_any_subspace_decomposes_or_has_a_witness(problem, method):
    A, subspace = problem
    assume(subspace.codimension > 0)
    assume(subspace.dimension > 0 or not method.startswith("primal"))
    outcome = attempt(A, subspace, method)
    if isinstance(outcome, DegenerateSubspaceError):
        witness = outcome.witness.numpy()
        eigenvalues = np.linalg.eigvalsh(witness)
        assert eigenvalues[0] >= -1e-6 * eigenvalues[-1]
        assert subspace.contains(witness, 1e-6)
    elif isinstance(outcome, ConvergenceError):  # allowed where rounding in B⁻¹ alone exceeds the tolerance
        inverse = np.linalg.inv(outcome.best.B)
        assert np.linalg.cond(outcome.best.B) * np.abs(inverse).max() / np.abs(A).max() > 1e4
    else:
        assert_decomposes(A, subspace, outcome)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_existence_does_not_depend_on_a_or_on_the_method(problem, through_dual):
    A, subspace = problem
    assume(subspace.codimension > 0 and subspace.dimension > 0)
    methods = ["dual_newton", "primal_newton"] if through_dual else ["auto", "primal_newton"]
    outcomes = [attempt(A, subspace, methods[0]), attempt(np.eye(len(A)), subspace, methods[1])]
    for outcome in outcomes:  # a complement that barely meets the positive definite matrices may be judged either way
        assume(not isinstance(outcome, ConvergenceError))
        assume(isinstance(outcome, DegenerateSubspaceError) or np.linalg.cond(outcome.B) < 1e5)
    assert type(outcomes[0]) is type(outcomes[1])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 10), st.floats(0, 1), METHODS)
def test_any_pattern_decomposes(seed, n, density, method):
    rng = np.random.default_rng(seed)
    A, pattern = random_covariance(rng, n, 1e4), SparsityPattern.from_mask(np.triu(rng.random((n, n)) < density, 1))
    assume(pattern.dimension > 0 or not method.startswith("primal"))
    result = inverse_decomposition(A, pattern, method=method)
    assert_decomposes(A, pattern, result)
    assert pattern.complement_contains(result.B, 0.0)  # exactly zero off the pattern
    permutation = rng.permutation(n)
    rows, cols = pattern.edges
    place = np.argsort(permutation)
    moved = SparsityPattern(n, np.stack([place[rows], place[cols]], 1))
    other = inverse_decomposition(A[np.ix_(permutation, permutation)], moved)
    np.testing.assert_allclose(
        other.B, result.B[np.ix_(permutation, permutation)], rtol=1e-7, atol=1e-9 * np.abs(result.B).max()
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 12), st.floats(0, 8))
def test_any_positive_marginals_have_a_kronecker_sum(seed, p, q, spread):
    generator = torch.Generator().manual_seed(seed)
    entries = torch.exp(spread * torch.randn(p, q, generator=generator, dtype=torch.float64))
    solution = kronecker_sum_from_marginals(entries.sum(1), entries.sum(0))
    inverse = 1 / (solution.left[:, None] + solution.right)
    torch.testing.assert_close(inverse.sum(1), entries.sum(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(inverse.sum(0), entries.sum(0), rtol=1e-9, atol=0)

"""What is refused, and that the sentence names the cause and the way out."""

import numpy as np
import pytest
import torch

from heliostat.linalg import (
    BandedMatrix,
    BlockExchangeable,
    ComplementOf,
    DegenerateSubspaceError,
    KroneckerSum,
    LowRank,
    SpanOf,
    SparsityPattern,
    inverse_decomposition,
    linear_information,
)
from tests.support.logdet_problems import covariance, cycle, symmetric

PATTERN = cycle(6)


def spoiled(value, i=1, j=2):
    A = covariance(6)
    A[i, j] = A[j, i] = value
    return A


@pytest.mark.parametrize(
    ("A", "sentence"),
    [
        (np.ones((3, 4)), "square"),
        (np.ones(6), "square"),
        (np.ones((0, 0)), "empty"),
        (np.eye(6, dtype=int), "dtype int64; convert it to float64"),
        (np.eye(6, dtype=complex), "dtype complex128"),
        (np.eye(6, dtype=np.float16), "dtype float16"),
        (torch.eye(6, dtype=torch.bfloat16), "dtype bfloat16"),
        (torch.eye(6).to_sparse(), "sparse tensor"),
        (spoiled(np.nan), "NaN or infinity"),
        (spoiled(np.inf), "NaN or infinity"),
        (covariance(6) + np.triu(np.full((6, 6), 1e-3), 1), "not symmetric.*0.001"),
        (-np.eye(6), "smallest eigenvalue is -1,"),
        (spoiled(5.0), "smallest eigenvalue is -4"),
        (np.ones((6, 6)), "not positive definite to working precision"),
        (np.diag([1.0, 1, 1, 1, 1, 0]), "smallest eigenvalue is 0"),
        (covariance(7), "A has 7 rows but the subspace has n=6"),
        (np.stack([np.eye(6), -np.eye(6)]), "matrix 1 of the batch"),
    ],
)
def test_bad_a(A, sentence):
    with pytest.raises(ValueError, match=sentence):
        inverse_decomposition(A, PATTERN)


def test_raw_matrices_are_ambiguous():
    with pytest.raises(ValueError, match=r"SpanOf\(matrices\) if they span C's space.*ComplementOf"):
        inverse_decomposition(covariance(6), [np.eye(6)])


def test_nothing_left_for_b():
    with pytest.raises(ValueError, match="dimension zero"):
        inverse_decomposition(covariance(6), ComplementOf(SpanOf([], n=6)))


def test_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="dual_newton"):
        inverse_decomposition(covariance(6), PATTERN, method="magic")


@pytest.mark.parametrize(
    ("start", "sentence"),
    [(-np.eye(6), "not positive definite"), (np.ones((6, 6)) + np.eye(6), "not in the complement")],
)
def test_bad_start(start, sentence):
    with pytest.raises(ValueError, match=sentence):
        inverse_decomposition(covariance(6), PATTERN, start=start)


@pytest.mark.parametrize("A", [covariance(6), BandedMatrix(np.ones((1, 6)))])
def test_a_start_that_would_be_ignored(A):
    method = "primal_newton" if isinstance(A, np.ndarray) else "auto"
    with pytest.raises(ValueError, match="start= is for dual Newton"):
        inverse_decomposition(A, PATTERN, method=method, start=np.eye(6))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "dual_newton", "primal_newton"])
@pytest.mark.parametrize(
    "subspace",
    [
        SpanOf([np.eye(6)]),
        SpanOf([np.diag([1.0, 0, 0, 0, 0, 0])]),
        SpanOf([np.diag([1.0, 2, 0, 0, 0, 0]), symmetric(6, 0), symmetric(6, 1)]),
        SpanOf([symmetric(6, 0), np.ones((6, 6)) - symmetric(6, 0)]),
        ComplementOf(PATTERN),
        ComplementOf(SpanOf([np.diag([1.0, -1, 0, 0, 0, 0])])),
        ComplementOf(SpanOf([np.diag([1.0, 1, 1, 0, 0, 0]), np.diag([0.0, 0, 0, 1, 1, 0])])),
    ],
)
def test_a_semidefinite_direction_is_handed_over(subspace, method):
    with pytest.raises(DegenerateSubspaceError, match="does not exist") as caught:
        inverse_decomposition(covariance(6), subspace, method=method)
    witness = caught.value.witness.numpy()
    eigenvalues = np.linalg.eigvalsh(witness)
    assert eigenvalues[-1] > 0.1
    assert eigenvalues[0] > -1e-6
    assert subspace.contains(witness, 1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SparsityPattern(0), "at least one row"),
        (lambda: SparsityPattern(3, [(0, 3)]), "rows 0..3"),
        (lambda: SparsityPattern(3, [(0.5, 1.0)]), "dtype float64"),
        (lambda: SparsityPattern.banded(3, 3), "bandwidth=3"),
        (lambda: SparsityPattern.tree([1, 2, 0]), "cycle"),
        (lambda: SparsityPattern.tree([0, 0]), "cycle through row 0"),
        (lambda: SparsityPattern.block_diagonal([2, 0]), "positive"),
        (lambda: SparsityPattern.from_mask(np.ones((2, 3))), "square"),
        (lambda: SpanOf([]), "must be one"),
        (lambda: SpanOf([np.eye(2), np.eye(3)]), r"sizes \[2, 3\]"),
        (lambda: SpanOf([np.triu(np.ones((3, 3)))]), "member 0 of the span is not symmetric"),
        (lambda: SpanOf([np.full((3, 3), np.nan)]), "NaN"),
        (lambda: SpanOf([np.ones((2, 3))]), "square"),
        (lambda: SpanOf([LowRank(np.ones((4, 2)), np.eye(3))]), "LowRank needs"),
        (lambda: ComplementOf(np.eye(3)), "takes a Subspace"),
        (lambda: KroneckerSum(0, 2), "positive"),
        (lambda: BlockExchangeable([2, -1]), "positive"),
        (lambda: BlockExchangeable([2, 2], np.array([[1, 1], [0, 1]])), "symmetric 2 x 2"),
        (lambda: linear_information(4, {1: [np.array([1.0, 1, 0, 0])]}), "own increment"),
        (lambda: linear_information(4, {1: [np.ones(3)]}), "shape"),
        (lambda: SparsityPattern.diagonal(3).project(np.eye(4)), "3 x 3"),
        (lambda: BandedMatrix(np.ones(3)), "bandwidth"),
        (lambda: BandedMatrix(np.ones((2, 3), dtype=int)), "dtype int64"),
        (lambda: BandedMatrix(np.full((1, 3), np.nan)), "NaN"),
    ],
)
def test_bad_subspaces_and_storage(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

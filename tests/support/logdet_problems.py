"""Covariances and subspaces that the tests of the decomposition share."""

from collections.abc import Callable

import numpy as np

from heliostat.linalg import (
    BlockExchangeable,
    ComplementOf,
    KroneckerSum,
    LowRank,
    SpanOf,
    SparsityPattern,
    Subspace,
    delayed_information,
    full_information,
    markov_information,
)


def covariance(n: int, seed: int = 0, condition: float = 1e2) -> np.ndarray:
    """Random eigenvectors, eigenvalues from 1 down to 1/condition."""
    rng = np.random.default_rng([n, seed])
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (vectors * np.logspace(0, -np.log10(condition), n)) @ vectors.T
    return (matrix + matrix.T) / 2


def random_pattern(n: int, seed: int = 0, neighbours: float = 4.0) -> SparsityPattern:
    rng = np.random.default_rng([n, seed, 1])
    return SparsityPattern.from_mask(np.triu(rng.random((n, n)) < neighbours / (n - 1), 1))


def cycle(n: int) -> SparsityPattern:
    """The smallest non-chordal pattern from n = 4 on."""
    return SparsityPattern(n, [(i, (i + 1) % n) for i in range(n)])


def symmetric(n: int, seed: int) -> np.ndarray:
    matrix = np.random.default_rng([n, seed, 2]).normal(size=(n, n))
    return matrix + matrix.T


def traceless_span(n: int, size: int, seed: int = 0) -> SpanOf:
    """A dense span in the complement of the identity, so that the decomposition exists."""
    members = [symmetric(n, seed + k) for k in range(size)]
    return SpanOf([member - np.trace(member) / n * np.eye(n) for member in members])


# Every kind of subspace for matrices of twelve rows: name -> maker.
SUBSPACES: dict[str, Callable[[], Subspace]] = {
    "diagonal": lambda: SparsityPattern.diagonal(12),
    "full": lambda: SparsityPattern.full(12),
    "blocks": lambda: SparsityPattern.block_diagonal([3, 1, 5, 3]),
    "band": lambda: SparsityPattern.banded(12, 3),
    "tree": lambda: SparsityPattern.tree([-1, 0, 0, 1, 1, 2, 5, 5, -1, 8, 9, 8]),
    "chordal": lambda: SparsityPattern(12, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8)]),
    "cycle": lambda: cycle(12),
    "random": lambda: random_pattern(12),
    "span": lambda: traceless_span(12, 9),
    "low_rank_span": lambda: SpanOf([LowRank(np.eye(12)[:, [k, k + 5]], [[0, 1], [1, 0]]) for k in range(6)]),
    "linear_precision": lambda: ComplementOf(SpanOf([np.eye(12), symmetric(12, 5), symmetric(12, 6)])),
    "exchangeable": lambda: BlockExchangeable([3, 4, 5]),
    "kronecker": lambda: KroneckerSum(3, 4),
    "full_information": lambda: full_information(12),
    "delayed": lambda: delayed_information(12, 2),
    "markov": lambda: markov_information(12),
}


def dense_basis(subspace: Subspace) -> np.ndarray:
    """Rows spanning S, found without the library's bases: project every symmetric unit matrix and take the range."""
    n = subspace.n
    rows = []
    for i in range(n):
        for j in range(i, n):
            unit = np.zeros((n, n))
            unit[i, j] = unit[j, i] = 1.0
            rows.append(np.asarray(subspace.project(unit)).ravel())
    _, singular, right = np.linalg.svd(np.stack(rows))
    return right[: int((singular > 1e-9).sum())]

"""Subspaces: projections, bases, constructors, and the products Newton needs, against dense definitions."""

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

from heliostat.linalg import (
    BlockExchangeable,
    ComplementOf,
    KroneckerSum,
    LowRank,
    SpanOf,
    SparsityPattern,
    delayed_information,
    full_information,
    linear_information,
    markov_information,
)
from heliostat.linalg.logdet.bases import CoordinateBasis
from tests.support.logdet_problems import SUBSPACES, covariance, dense_basis, symmetric


@pytest.mark.parametrize("name", SUBSPACES)
class TestEverySubspace:
    def test_projections_split_orthogonally(self, name):
        subspace, X, Y = SUBSPACES[name](), symmetric(12, 1), symmetric(12, 2)
        P, Q = subspace.project(X), subspace.project_complement(X)
        np.testing.assert_allclose(P + Q, X, atol=1e-12)
        np.testing.assert_allclose(subspace.project(P), P, atol=1e-11)
        assert abs(np.sum(P * subspace.project_complement(Y))) < 1e-10
        assert subspace.contains(P) or subspace.dimension == 0
        assert subspace.complement_contains(Q)
        assert subspace.dimension == 0 or not subspace.contains(X)

    @pytest.mark.slow
    def test_dimensions_and_bases_agree(self, name):
        subspace = SUBSPACES[name]()
        assert len(dense_basis(subspace)) == subspace.dimension
        assert subspace.dimension + subspace.codimension == 78
        assert subspace.basis.size == subspace.dimension
        assert subspace.complement_basis.size == subspace.codimension
        if subspace.dimension:
            members = subspace.basis.combine(torch.eye(subspace.dimension, dtype=torch.float64))
            assert subspace.contains(members)
        assert subspace.complement_contains(subspace.complement_basis.combine(torch.eye(subspace.codimension).double()))

    def test_newton_products(self, name):
        subspace = SUBSPACES[name]()
        basis = subspace.complement_basis if subspace.codimension <= subspace.dimension else subspace.basis
        if not basis.size:
            return
        W = torch.tensor(np.stack([covariance(12, 7), covariance(12, 8)]))
        members = basis.combine(torch.eye(basis.size, dtype=torch.float64))
        dense = torch.einsum("bij,kjl,blm,nmi->bkn", W, members, W, members)
        torch.testing.assert_close(basis.hessian(W), dense, rtol=1e-10, atol=1e-10)
        v = torch.tensor(np.random.default_rng(0).normal(size=(2, basis.size)))
        product = torch.einsum("bkn,bn->bk", dense, v)
        torch.testing.assert_close(basis.hessian_product(W, v), product, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(basis.inner(W), torch.einsum("bij,kij->bk", W, members), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(basis.coordinates(basis.combine(v)), v, rtol=1e-9, atol=1e-9)

    def test_complement_swaps_sides(self, name):
        subspace, X = SUBSPACES[name](), symmetric(12, 3)
        other = ComplementOf(subspace)
        assert (other.dimension, other.codimension) == (subspace.codimension, subspace.dimension)
        np.testing.assert_allclose(other.project(X), subspace.project_complement(X), atol=1e-11)
        np.testing.assert_allclose(ComplementOf(other).project(X), subspace.project(X), atol=1e-11)

    def test_restriction_to_touched_rows_loses_nothing(self, name):
        subspace = SUBSPACES[name]()
        touched = subspace.touched()
        if len(touched) in (0, subspace.n):
            return
        inside = subspace.restricted(touched)
        assert inside.dimension == subspace.dimension
        X = symmetric(12, 4)
        rows = np.ix_(touched.numpy(), touched.numpy())
        np.testing.assert_allclose(inside.project(X[rows]), subspace.project(X)[rows], atol=1e-11)


@pytest.mark.parametrize("n", [30, 150, 450])
def test_sparse_hessian_product_equals_the_dense_one(n):
    rng = np.random.default_rng(n)
    rows, cols = np.nonzero(np.triu(rng.random((n, n)) < 4 / n))
    basis = CoordinateBasis(n, torch.from_numpy(rows), torch.from_numpy(cols))
    W, v = torch.tensor(covariance(n))[None], torch.tensor(rng.normal(size=(1, len(rows))))
    expected = basis.inner(W @ basis.combine(v) @ W)
    torch.testing.assert_close(basis.hessian_product(W, v), expected, rtol=1e-11, atol=1e-12)


def test_inverse_hessian_guess_is_exact_on_the_whole_space():
    basis = SparsityPattern.full(6).complement_basis
    W, v = torch.tensor(covariance(6))[None], torch.tensor(np.random.default_rng(0).normal(size=(1, 21)))
    guess = basis.inverse_hessian_guess(torch.linalg.inv(W), basis.hessian_product(W, v))
    torch.testing.assert_close(guess, v, rtol=1e-8, atol=1e-8)


def edges(pattern):
    return {tuple(pair) for pair in np.stack(pattern.edges, 1).tolist()}


class TestPatterns:
    def test_constructors_agree(self):
        band = SparsityPattern.banded(7, 1)
        path = networkx.path_graph(7)
        sparse = scipy.sparse.coo_array(networkx.to_numpy_array(path))
        others = [
            SparsityPattern.tree([-1, 0, 1, 2, 3, 4, 5]),
            SparsityPattern.from_graph(path),
            SparsityPattern.from_sparse(sparse),
            SparsityPattern.from_mask(networkx.to_numpy_array(path)),
            SparsityPattern(7, [(k + 1, k) for k in range(6)] * 2),
            delayed_information(7, 1),
        ]
        assert all(edges(other) == edges(band) for other in others)
        assert band.num_edges == len(edges(band)) == 6
        assert SparsityPattern.banded(7, 3).num_edges == len(edges(SparsityPattern.banded(7, 3)))
        assert edges(SparsityPattern.banded(4, 3)) == edges(SparsityPattern.full(4))
        assert edges(SparsityPattern.banded(4, 0)) == edges(full_information(4)) == set()

    def test_graph_nodes_may_have_any_names(self):
        graph = networkx.Graph([("b", "a"), ("c", "b")])
        assert edges(SparsityPattern.from_graph(graph)) == {(0, 1), (0, 2)}

    def test_repr_says_which_side_has_how_much(self):
        assert "C has 3 free parameters, B has 3" in repr(SparsityPattern.diagonal(3))


class TestSpans:
    def test_dependent_members_count_once(self):
        X, Y = symmetric(6, 0), symmetric(6, 1)
        both, more = SpanOf([X, Y]), SpanOf([X, Y, X - 2 * Y, 0 * X])
        assert more.dimension == 2
        np.testing.assert_allclose(more.project(symmetric(6, 2)), both.project(symmetric(6, 2)), atol=1e-12)

    def test_nearly_dependent_members_are_kept_apart(self):
        X, Y = symmetric(6, 0), symmetric(6, 1)
        nearly = SpanOf([X, X + 1e-7 * Y])
        assert nearly.dimension == 2
        assert nearly.contains(Y, 1e-6)

    def test_storages_mix(self):
        X = np.zeros((9, 9))
        X[0, 3] = X[3, 0] = 2.0
        u, v = np.eye(9)[:, 1], np.arange(9.0)
        Y = np.outer(u, v) + np.outer(v, u)
        dense = SpanOf([X, Y])
        mixed = SpanOf([scipy.sparse.csr_array(X), LowRank(np.stack([u, v], 1), [[0, 1], [1, 0]])])
        Z = symmetric(9, 0)
        np.testing.assert_allclose(mixed.project(Z), dense.project(Z), atol=1e-12)
        assert type(mixed.basis).__name__ == "FactoredBasis"

    def test_tensors_and_arrays_mix(self):
        assert SpanOf([torch.eye(3), np.ones((3, 3))]).dimension == 2


class TestInformation:
    def test_markov_members(self):
        members = markov_information(5)
        D = np.zeros((5, 5))
        D[3, :3] = D[:3, 3] = 1.0
        assert members.contains(D)
        assert members.dimension == 4

    def test_unit_statistics_become_a_pattern(self):
        space = linear_information(4, {2: [np.eye(4)[0]], 3: [np.eye(4)[0], np.eye(4)[1]]})
        assert isinstance(space, SparsityPattern)
        assert edges(space) == {(0, 1), (1, 2), (2, 3)}

    def test_delay_zero_is_full_information(self):
        assert edges(delayed_information(5, 0)) == edges(full_information(5))


def test_exchangeable_singletons_are_a_pattern():
    free = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    X = symmetric(3, 0)
    np.testing.assert_allclose(
        BlockExchangeable([1, 1, 1], free).project(X), SparsityPattern.from_mask(~free).project(X), atol=1e-14
    )


def test_kronecker_sum_partial_traces():
    space, rng = KroneckerSum(3, 4), np.random.default_rng(0)
    G = rng.normal(size=(200, 3, 4))
    flat = G.reshape(200, 12)
    left, right = space.partial_traces(torch.tensor(flat.T @ flat / 200)[None])
    np.testing.assert_allclose(left[0], np.einsum("sij,skj->ik", G, G) / 200, atol=1e-12)
    np.testing.assert_allclose(right[0], np.einsum("sij,sil->jl", G, G) / 200, atol=1e-12)
    L, R = symmetric(3, 0), symmetric(4, 1)
    assert space.complement_contains(np.kron(L, np.eye(4)) + np.kron(np.eye(3), R))

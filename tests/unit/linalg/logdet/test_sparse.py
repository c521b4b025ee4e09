"""Sparse and banded storage against the dense path, and at sizes where a dense matrix could not exist."""

import resource

import numpy as np
import pytest
import scipy.sparse

from heliostat.linalg import BandedMatrix, ConvergenceError, Partial, SpanOf, SparsityPattern, inverse_decomposition
from heliostat.linalg.logdet.sparse import banded
from tests.support.logdet_problems import covariance, cycle, random_pattern


def band(n, width, seed=0):
    """Diagonally dominant, hence positive definite as a matrix that is zero outside its band."""
    rng = np.random.default_rng([n, width, seed])
    bands = rng.uniform(-1, 1, size=(width + 1, n))
    bands[0] = 2.0 * width + 1 + np.abs(bands[0])
    return BandedMatrix(bands / np.sqrt(width + 1.0))


def dense(matrix):
    return matrix.to_dense() if isinstance(matrix, BandedMatrix) else matrix.toarray()


def assert_same(sparse_result, dense_result):
    scale = np.abs(dense_result.B).max()
    np.testing.assert_allclose(dense(sparse_result.B), dense_result.B, rtol=1e-9, atol=1e-11 * scale)
    assert sparse_result.certificate.residual < 1e-12
    if sparse_result.kl is not None:
        assert abs(sparse_result.kl - dense_result.kl) < 1e-9
        np.testing.assert_allclose(sparse_result.C.to_dense(), dense_result.C, atol=1e-10)


class TestBands:
    @pytest.mark.parametrize("width", [0, 1, 2, 5, 29])
    @pytest.mark.parametrize("kept", [0, 1, 3, 29])
    def test_equals_the_dense_path(self, width, kept):
        A, pattern = band(30, width), SparsityPattern.banded(30, kept)
        assert_same(inverse_decomposition(A, pattern), inverse_decomposition(A.to_dense(), pattern))

    @pytest.mark.parametrize("width", [0, 1, 2, 5])
    @pytest.mark.parametrize("n", [6, 7, 50, 257])
    def test_inverse_on_the_band(self, n, width):
        A = band(n, width, 1)
        inverse = np.linalg.inv(A.to_dense())
        found = banded.inverse_on_band(banded.cholesky(A))
        for k in range(width + 1):
            np.testing.assert_allclose(found[k, : n - k], np.diagonal(inverse, -k), rtol=1e-10, atol=1e-13)

    def test_entries_outside_the_band_may_be_unknown(self):
        n, rho = 40, 0.999
        A = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        known = Partial(BandedMatrix.from_dense(A, 1))
        result = inverse_decomposition(known, SparsityPattern.banded(n, 1))
        np.testing.assert_allclose(dense(result.B), np.linalg.inv(A), rtol=1e-9, atol=1e-8)
        assert result.kl is None
        assert result.C is None

    def test_c_is_applied_not_stored(self):
        A, x = band(30, 3), np.random.default_rng(0).normal(size=(30, 2))
        result = inverse_decomposition(A, SparsityPattern.banded(30, 1))
        expected = A.to_dense() @ x - np.linalg.solve(dense(result.B), x)
        np.testing.assert_allclose(result.C.matvec(x), expected, atol=1e-12)

    def test_segments_and_blocks_join(self):
        # several elimination blocks and several inversion segments, against one another
        A = band(3 * banded.SEGMENT // 2, 2)
        result = inverse_decomposition(A, SparsityPattern.banded(A.n, 2))
        assert result.certificate.residual < 1e-13
        part = BandedMatrix(A.bands[:, banded.SEGMENT - 300 : banded.SEGMENT + 300])
        local = inverse_decomposition(part, SparsityPattern.banded(600, 2)).B.bands
        inside = result.B.bands[:, banded.SEGMENT - 300 : banded.SEGMENT + 300]
        np.testing.assert_allclose(inside[:, 10:-10], local[:, 10:-10], rtol=1e-12, atol=1e-14)

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [1, 3])
    def test_a_million_rows(self, width):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        A = band(1_000_000, width)
        result = inverse_decomposition(A, SparsityPattern.banded(A.n, width))
        assert result.certificate.residual < 1e-13
        assert abs(result.certificate.trace_error) < 1e-6
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mb < 150 * (width + 2)  # a dense matrix would be 8,000,000 MB


class TestTreesAndChordalGraphs:
    @pytest.mark.parametrize("seed", range(4))
    def test_trees_equal_the_dense_path(self, seed):
        rng = np.random.default_rng(seed)
        parents = np.r_[-1, rng.integers(-1, np.arange(1, 40))]
        A, pattern = covariance(40, seed), SparsityPattern.tree(parents)
        assert_same(inverse_decomposition(scipy.sparse.csr_array(A), pattern), inverse_decomposition(A, pattern))

    def test_a_chordal_graph_with_cliques_of_many_sizes(self):
        A = covariance(30)
        fill = SparsityPattern.block_diagonal([4, 1, 7, 2, 8, 8])
        extra = [(3, 4), (4, 5), (11, 12), (13, 14), (14, 21)]
        pattern = SparsityPattern(30, np.concatenate([np.stack(fill.edges, 1), extra]))
        assert pattern.is_chordal
        assert_same(inverse_decomposition(scipy.sparse.csc_array(A), pattern), inverse_decomposition(A, pattern))

    def test_banded_storage_on_another_pattern(self):
        A, pattern = band(30, 4), SparsityPattern.tree([-1, *([0] * 29)])
        assert_same(inverse_decomposition(A, pattern), inverse_decomposition(A.to_dense(), pattern))

    def test_a_tree_of_a_hundred_thousand_rows_of_which_only_the_tree_is_known(self):
        n = 100_000
        parents = np.r_[-1, np.random.default_rng(0).integers(0, np.arange(1, n))]
        child, parent, rho = np.arange(1, n), parents[1:], 0.9
        data = np.r_[np.ones(n), np.full(2 * (n - 1), rho)]
        rows, cols = np.r_[np.arange(n), child, parent], np.r_[np.arange(n), parent, child]
        known = Partial(scipy.sparse.csc_array((data, (rows, cols)), shape=(n, n)))
        result = inverse_decomposition(known, SparsityPattern.tree(parents))
        assert result.certificate.residual < 1e-11
        degree = np.bincount(np.r_[child, parent])
        np.testing.assert_allclose(result.B.diagonal(), 1 + degree * rho**2 / (1 - rho**2), rtol=1e-12)


class TestEmbedding:
    @pytest.mark.parametrize("n", [4, 9, 40])
    def test_cycles_equal_dense_newton(self, n):
        A = covariance(n, condition=1e3)
        result = inverse_decomposition(scipy.sparse.csc_array(A), cycle(n))
        assert result.certificate.method == "chordal_embedding"
        assert_same(result, inverse_decomposition(A, cycle(n), method="dual_newton"))

    @pytest.mark.parametrize("seed", range(3))
    def test_random_patterns_equal_dense_newton(self, seed):
        A, pattern = covariance(40, seed, condition=1e4), random_pattern(40, seed, neighbours=2.5)
        result = inverse_decomposition(scipy.sparse.csc_array(A), pattern)
        assert_same(result, inverse_decomposition(A, pattern, method="dual_newton"))
        assert pattern.complement_contains(dense(result.B), 0.0)

    @pytest.mark.slow
    def test_a_ring_of_three_thousand(self):
        n = 3000
        ring = scipy.sparse.diags_array(
            [np.full(n, 2.2), np.full(n - 1, -1.0), np.full(n - 1, -1.0)], offsets=[0, 1, -1]
        )
        corner = scipy.sparse.coo_array(([-1.0, -1.0], ([0, n - 1], [n - 1, 0])), shape=(n, n))
        result = inverse_decomposition((ring + corner).tocsc(), cycle(n))
        assert result.certificate.residual < 1e-13
        # every row of a ring is alike
        assert np.ptp(result.B.diagonal()) < 1e-10

    def test_a_pattern_far_from_chordal_is_solved_densely_or_refused(self, monkeypatch):
        from heliostat.linalg.logdet.sparse import embedding

        monkeypatch.setattr(embedding, "MOST_HESSIAN_ENTRIES", 100)
        A, pattern = covariance(30), random_pattern(30)
        result = inverse_decomposition(scipy.sparse.csc_array(A), pattern)
        assert result.certificate.method == "dual_newton_cg"
        assert_same(result, inverse_decomposition(A, pattern, method="dual_newton"))
        monkeypatch.setattr(embedding, "MOST_DENSE_ROWS", 29)
        with pytest.raises(ValueError, match=r"too far from chordal.*30 rows are too many for a dense one \(29\)"):
            inverse_decomposition(scipy.sparse.csc_array(A), pattern)

    def test_one_step_is_not_enough_and_says_so(self):
        A = scipy.sparse.csc_array(covariance(20, condition=1e4))
        with pytest.raises(ConvergenceError, match="relative residual") as caught:
            inverse_decomposition(A, cycle(20), max_steps=1)
        assert np.linalg.eigvalsh(caught.value.best.B.toarray())[0] > 0


class TestRefusals:
    def test_not_positive_definite_unless_partial(self):
        bands = np.stack([np.ones(10), np.full(10, 0.999)])
        with pytest.raises(ValueError, match=r"zero outside its band.*Partial\(A\)"):
            inverse_decomposition(BandedMatrix(bands), SparsityPattern.banded(10, 1))
        inverse_decomposition(Partial(BandedMatrix(bands)), SparsityPattern.banded(10, 1))

    def test_scattered_storage_not_positive_definite_unless_partial(self):
        star = scipy.sparse.lil_array(np.eye(10))
        star[0, 1:] = star[1:, 0] = 0.6
        pattern = SparsityPattern.tree([-1, *([0] * 9)])
        with pytest.raises(ValueError, match=r"zero where nothing is stored.*Partial\(A\)"):
            inverse_decomposition(star.tocsc(), pattern)
        assert inverse_decomposition(Partial(star.tocsc()), pattern).certificate.residual < 1e-14

    @pytest.mark.parametrize("pattern", [SparsityPattern.banded(20, 2), cycle(20)], ids=["band", "cycle"])
    def test_fewer_samples_than_variables_lead_to_partial(self, pattern):
        A = np.cov(np.random.default_rng(0).normal(size=(20, 8)))
        with pytest.raises(ValueError, match=r"inverse_decomposition\(Partial\(A\), pattern\)"):
            inverse_decomposition(A, pattern)
        known = np.eye(20, dtype=bool)
        known[pattern.edges] = known[pattern.edges[::-1]] = True
        given = np.where(known, A, np.nan) if pattern.is_chordal else A
        result = inverse_decomposition(Partial(given), pattern)
        assert result.C is None
        B = result.B.toarray()
        assert (B[~known] == 0).all()
        assert np.linalg.eigvalsh(B)[0] > 0
        np.testing.assert_allclose(np.linalg.inv(B)[known], A[known], atol=1e-10)

    def test_an_indefinite_matrix_is_not_sent_to_partial(self):
        with pytest.raises(ValueError, match=r"identity$") as caught:
            inverse_decomposition(np.diag([1.0, 1.0, -1e-3]), SparsityPattern.diagonal(3))
        assert "Partial" not in str(caught.value)

    def test_an_unknown_entry_of_a_dense_array_is_named(self):
        A = covariance(6)
        A[0, 1] = A[1, 0] = np.nan
        with pytest.raises(ValueError, match=r"entry \(0, 1\)"):
            inverse_decomposition(Partial(A), SparsityPattern.banded(6, 1))

    def test_too_few_samples_for_a_clique(self):
        A = np.cov(np.random.default_rng(0).normal(size=(20, 8)))
        with pytest.raises(ValueError, match=r"more samples than the largest clique has rows \(9\)"):
            inverse_decomposition(Partial(A), SparsityPattern.banded(20, 8))

    def test_no_completion_at_all(self):
        bands = np.stack([np.ones(10), np.full(10, 0.5)])
        bands[1, 4] = 1.5
        with pytest.raises(ValueError, match=r"rows 4..5 have smallest eigenvalue -0.5"):
            inverse_decomposition(Partial(BandedMatrix(bands)), SparsityPattern.banded(10, 1))
        matrix = scipy.sparse.csc_array(BandedMatrix(bands).to_dense())
        with pytest.raises(ValueError, match="clique"):
            inverse_decomposition(Partial(matrix), SparsityPattern.banded(10, 1))

    def test_unknown_entries_are_named(self):
        with pytest.raises(ValueError, match="only 1 diagonals"):
            inverse_decomposition(Partial(band(10, 1)), SparsityPattern.banded(10, 2))
        with pytest.raises(ValueError, match=r"entry \(0, 9\)"):
            inverse_decomposition(Partial(band(10, 1)), cycle(10))

    @pytest.mark.parametrize(
        ("A", "subspace", "options", "sentence"),
        [
            (band(6, 1), SpanOf([np.ones((6, 6)) - np.eye(6)]), {}, "needs a SparsityPattern"),
            (band(6, 1), SparsityPattern.banded(7, 1), {}, r"shape \(6, 6\)"),
            (band(6, 1), SparsityPattern.banded(6, 1), {"method": "dual_newton"}, "for dense A"),
            (Partial([[1.0]]), SparsityPattern.banded(6, 1), {}, "Partial takes"),
            (Partial(np.eye(7)), SparsityPattern.banded(6, 1), {}, r"shape \(7, 7\)"),
            (scipy.sparse.eye_array(6, dtype=int), cycle(6), {}, "dtype int"),
            (scipy.sparse.csc_array(np.triu(np.ones((6, 6)))), cycle(6), {}, "not symmetric"),
            (scipy.sparse.csc_array(np.diag([1, 1, np.nan, 1, 1, 1])), cycle(6), {}, "NaN"),
            (scipy.sparse.csc_array(covariance(6)), cycle(6), {"method": "closed_form"}, "not chordal"),
        ],
    )
    def test_bad_calls(self, A, subspace, options, sentence):
        with pytest.raises(ValueError, match=sentence):
            inverse_decomposition(A, subspace, **options)

    def test_nothing_dense_is_written_by_accident(self):
        result = inverse_decomposition(band(30_000, 1), SparsityPattern.banded(30_000, 1))
        with pytest.raises(ValueError, match="refusing"):
            result.C.to_dense()

"""The front door: what every decomposition satisfies, checked with plain numpy."""

import numpy as np
import pytest
import torch

from heliostat.linalg import (
    BlockExchangeable,
    ConvergenceError,
    SpanOf,
    SparsityPattern,
    inverse_decomposition,
)
from tests.support.logdet_problems import (
    SUBSPACES,
    covariance,
    cycle,
    dense_basis,
    random_pattern,
    symmetric,
    traceless_span,
)

ITERATIONS = ("dual_newton", "dual_newton_cg", "primal_newton", "primal_newton_cg")


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSPACES)
def test_the_answer_is_the_decomposition(name):
    subspace, A = SUBSPACES[name](), covariance(12)
    result = inverse_decomposition(A, subspace)
    spanning = dense_basis(subspace)
    inside = spanning.T @ (spanning @ result.C.ravel())
    assert np.abs(result.C.ravel() - inside).max() < 1e-12  # C ∈ S
    assert np.abs(spanning @ result.B.ravel()).max(initial=0.0) < 1e-9 * np.abs(result.B).max()  # B ∈ S⊥
    assert np.linalg.eigvalsh(result.B)[0] > 0
    np.testing.assert_allclose(np.linalg.inv(result.B) + result.C, A, atol=1e-12)
    assert abs(np.trace(A @ result.B) - 12) < 1e-11
    assert np.linalg.slogdet(A)[1] <= -np.linalg.slogdet(result.B)[1] + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSPACES)
def test_every_method_finds_the_same_b(name):
    subspace, A = SUBSPACES[name](), covariance(12, seed=1)
    reference = inverse_decomposition(A, subspace).B
    for method in ITERATIONS:
        if method.startswith("primal") and not subspace.dimension:
            continue
        other = inverse_decomposition(A, subspace, method=method)
        assert other.certificate.method == method
        np.testing.assert_allclose(other.B, reference, rtol=1e-9, atol=1e-10 * np.abs(reference).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSPACES)
def test_certificate_recomputed_by_hand(name):
    subspace, A = SUBSPACES[name](), covariance(12, seed=2)
    result = inverse_decomposition(A, subspace)
    spanning, B, C = dense_basis(subspace), result.B, result.C
    remainder = (A - np.linalg.inv(B)).ravel()
    off = remainder - spanning.T @ (spanning @ remainder)
    certificate = result.certificate
    assert abs(np.abs(off).max() / np.abs(A).max() - certificate.residual) < 1e-14
    assert abs(np.trace(A @ B) - 12 - certificate.trace_error) < 1e-12
    gap = np.trace(A @ B) - 12 - np.linalg.slogdet(B)[1] - np.linalg.slogdet(A - C)[1]
    assert abs(gap - certificate.duality_gap) < 1e-12
    kl = (np.trace(A @ B) - 12 - np.linalg.slogdet(A)[1] - np.linalg.slogdet(B)[1]) / 2
    assert abs(kl - result.kl) < 1e-12
    assert certificate.residual < 1e-13


@pytest.mark.parametrize("max_steps", [1, 2])
def test_an_early_stop_is_certified_as_such(max_steps):
    A, subspace = covariance(30, condition=1e4), random_pattern(30)
    with pytest.raises(ConvergenceError, match="relative residual") as caught:
        inverse_decomposition(A, subspace, max_steps=max_steps)
    best = caught.value.best
    assert np.linalg.eigvalsh(best.B)[0] > 0
    assert subspace.complement_contains(best.B)
    exact = inverse_decomposition(A, subspace)
    assert best.certificate.residual > 1e-10
    # half the gap bounds how much closer another B could be, and the bound is met from above
    assert 0 <= best.kl - exact.kl <= best.certificate.duality_gap / 2 + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cycle", "band", "span", "linear_precision", "kronecker", "exchangeable"])
def test_scaling_a_scales_c_and_divides_b(name):
    subspace, A = SUBSPACES[name](), covariance(12, seed=3)
    one, many = inverse_decomposition(A, subspace), inverse_decomposition(A * 1e5, subspace)
    np.testing.assert_allclose(many.B * 1e5, one.B, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(many.C, one.C * 1e5, rtol=1e-9, atol=1e-5)
    assert abs(one.kl - many.kl) < 1e-10


def test_congruence_moves_b_and_c_with_it():
    rng = np.random.default_rng(0)
    members = [rng.normal(size=(7, 7)) for _ in range(5)]
    members = [np.where(np.eye(7, dtype=bool), 0.0, member + member.T) for member in members]
    A, G = covariance(7), rng.normal(size=(7, 7)) + 3 * np.eye(7)
    plain = inverse_decomposition(A, SpanOf(members))
    moved = inverse_decomposition(G @ A @ G.T, SpanOf([G @ member @ G.T for member in members]))
    inverse = np.linalg.inv(G)
    np.testing.assert_allclose(moved.B, inverse.T @ plain.B @ inverse, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(moved.C, G @ plain.C @ G.T, rtol=1e-8, atol=1e-9)


def test_diagonal_congruence_of_a_pattern_over_twelve_orders():
    A, pattern = covariance(12), cycle(12)
    weights = np.logspace(-6, 6, 12)
    plain, moved = inverse_decomposition(A, pattern), inverse_decomposition(A * weights[:, None] * weights, pattern)
    np.testing.assert_allclose(moved.B * weights[:, None] * weights, plain.B, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cycle", "random", "linear_precision", "kronecker", "low_rank_span"])
def test_many_starts_end_at_one_b(name):
    subspace, A = SUBSPACES[name](), covariance(12, seed=4)
    reference = inverse_decomposition(A, subspace)
    member = inverse_decomposition(np.eye(12), subspace).B
    for seed in range(8):
        direction = np.asarray(subspace.project_complement(symmetric(12, seed + 50)))
        largest = np.abs(np.linalg.eigvalsh(direction)).max() / np.linalg.eigvalsh(member)[0]
        start = np.exp(3 * np.random.default_rng(seed).normal()) * (member + 0.95 * direction / largest)
        other = inverse_decomposition(A, subspace, start=start)
        np.testing.assert_allclose(other.B, reference.B, rtol=1e-8, atol=1e-9)


def test_a_warm_start_saves_steps():
    A, pattern = covariance(30, condition=1e3), random_pattern(30)
    cold = inverse_decomposition(A, pattern)
    warm = inverse_decomposition(A * (1 + 1e-9), pattern, start=cold.B)
    assert warm.certificate.iterations < cold.certificate.iterations


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cycle", "span", "markov", "linear_precision", "kronecker"])
def test_stability_bounds(name):
    subspace, A = SUBSPACES[name](), covariance(12, seed=5)
    base = inverse_decomposition(A, subspace)
    norm, smallest = np.linalg.eigvalsh(base.B)[[-1, 0]]
    for seed in range(5):
        change = 1e-7 * symmetric(12, seed)
        moved = inverse_decomposition(A + change, subspace)
        size = np.linalg.norm(change)
        assert np.linalg.norm(moved.B - base.B) <= norm**2 * size * 1.001
        assert np.linalg.norm(moved.C - base.C) <= norm / smallest * size * 1.001


class TestPaperExamples:
    """The four examples of the authors' repository, each by the method that makes it cheap."""

    def test_one_few_pairs_free(self):
        A = covariance(60)
        pairs = [(3, 7), (3, 20), (7, 41), (20, 55), (11, 55)]
        members = []
        for i, j in pairs:
            unit = np.zeros((60, 60))
            unit[i, j] = unit[j, i] = 1.0
            members.append(unit)
        result = inverse_decomposition(A, SpanOf(members))
        assert result.certificate.method.startswith("schur+")
        pattern = SparsityPattern.from_mask(1 - np.sum(members, 0))
        np.testing.assert_allclose(inverse_decomposition(A, pattern).B, result.B, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            inverse_decomposition(A, SpanOf(members), method="primal_newton").B, result.B, atol=1e-8
        )

    def test_two_tridiagonal_precision(self):
        A = covariance(60)
        result = inverse_decomposition(A, SparsityPattern.banded(60, 1))
        assert result.certificate.method == "closed_form"
        by_newton = inverse_decomposition(A, SparsityPattern.banded(60, 1), method="dual_newton_cg")
        np.testing.assert_allclose(by_newton.B, result.B, rtol=1e-9, atol=1e-9)

    def test_three_block_exchangeable(self):
        sizes, free = [4, 7, 3, 9, 5], np.ones((5, 5), dtype=bool)
        free[0, 4] = free[4, 0] = free[1, 3] = free[3, 1] = False
        space = BlockExchangeable(sizes, free)
        assert space.dimension == 13
        block = np.repeat(np.arange(5), sizes)
        level = 0.1 * symmetric(5, 0) + 0.4
        A = level[block][:, block] + np.diag(3 + np.arange(5.0)[block])
        result = inverse_decomposition(A, space)
        assert result.certificate.method == "closed_form"
        np.testing.assert_allclose(
            inverse_decomposition(A, space, method="primal_newton").B, result.B, rtol=1e-9, atol=1e-12
        )
        # for an exchangeable A, freeing every single entry of the free blocks changes nothing
        entries = free[block][:, block]
        np.testing.assert_allclose(
            inverse_decomposition(A, SparsityPattern.from_mask(~entries)).B, result.B, rtol=1e-8, atol=1e-10
        )

    def test_four_banded_a_and_banded_c(self):
        n = 60
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        A = np.where(distance <= 2, 0.3**distance, 0.0)
        result = inverse_decomposition(A, SparsityPattern.from_mask((distance == 0) | (distance > 2)))
        assert result.certificate.method == "screened+closed_form"
        np.testing.assert_allclose(result.B, np.diag(1 / np.diag(A)), atol=1e-13)


class TestIllConditioned:
    @pytest.mark.parametrize("seed", range(3))
    def test_nearly_singular_autoregression(self, seed):
        n = 60
        A = 0.999 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        result = inverse_decomposition(A, random_pattern(n, seed))
        assert result.certificate.residual < 1e-11
        assert result.certificate.iterations <= 25

    @pytest.mark.parametrize("seed", range(3))
    def test_condition_number_ten_billion(self, seed):
        A, pattern = covariance(40, seed, condition=1e10), random_pattern(40, seed)
        result = inverse_decomposition(A, pattern)
        assert pattern.complement_contains(result.B)
        on_pattern = np.asarray(pattern.project_complement(A - np.linalg.inv(result.B)))
        assert np.abs(on_pattern).max() < 1e-9 * np.abs(A).max()

    @pytest.mark.parametrize(
        "name", ["cycle", "span", "markov", "linear_precision", "band", "kronecker", "exchangeable"]
    )
    def test_condition_number_a_trillion_converges_or_says_so(self, name):
        subspace, A = SUBSPACES[name](), covariance(12, seed=6, condition=1e12)
        try:
            result = inverse_decomposition(A, subspace)
        except ConvergenceError as error:
            result = error.best
        assert np.linalg.eigvalsh(result.B)[0] > 0
        remainder = A - np.linalg.inv(result.B)
        off = np.abs(np.asarray(subspace.project_complement(remainder))).max() / np.abs(A).max()
        assert off < 10 * result.certificate.residual + 1e-9


class TestKinds:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["cycle", "band", "span", "kronecker", "exchangeable", "linear_precision"])
    def test_a_batch_is_its_members(self, name):
        subspace = SUBSPACES[name]()
        stack = torch.tensor(np.stack([covariance(12, seed) for seed in range(6)])).reshape(2, 3, 12, 12)
        together = inverse_decomposition(stack, subspace)
        assert together.B.shape == stack.shape
        assert together.kl.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                alone = inverse_decomposition(stack[i, j].numpy(), subspace)
                np.testing.assert_allclose(together.B[i, j], alone.B, rtol=1e-9, atol=1e-9)
                assert abs(float(together.kl[i, j]) - alone.kl) < 1e-9

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["cycle", "band", "span", "kronecker"])
    def test_float32_in_float32_out_with_a_certificate_of_those_numbers(self, name):
        subspace, A = SUBSPACES[name](), covariance(12).astype(np.float32)
        result = inverse_decomposition(A, subspace)
        assert result.B.dtype == result.C.dtype == np.float32
        exact = inverse_decomposition(A.astype(np.float64), subspace)
        np.testing.assert_allclose(result.B, exact.B, rtol=1e-6, atol=1e-5)
        assert 1e-12 < result.certificate.residual < 1e-4  # that of the rounded B, not of the solver's
        assert inverse_decomposition(torch.tensor(A), subspace).B.dtype == torch.float32

    def test_float32_that_cannot_hold_b_is_refused(self):
        """Whether rounding B costs its definiteness is decided by last bits; what must hold is that it is noticed."""
        kept, refused = [], []
        for k in range(800, 1000, 10):  # integers of determinant one: exact in float32, while B's entries reach k⁴
            A = np.array([[1, k, 0], [k, k * k + 1, k], [0, k, k * k + 1]], dtype=np.float32)
            try:
                kept.append(inverse_decomposition(A, SparsityPattern.full(3), tolerance=1e-3).B.astype(np.float64))
            except ConvergenceError as error:
                refused.append(error)
        for B in kept:
            np.linalg.cholesky(B)
        for error in refused:
            assert "float32" in str(error)
            np.linalg.cholesky(np.asarray(error.best.B))
        assert refused
        exact = inverse_decomposition(A.astype(np.float64), SparsityPattern.full(3), tolerance=1e-3)
        assert abs(np.linalg.det(exact.B) - 1) < 1e-3

    def test_torch_in_torch_out(self):
        result = inverse_decomposition(torch.tensor(covariance(12)), cycle(12))
        assert isinstance(result.B, torch.Tensor)
        assert isinstance(result.C, torch.Tensor)
        assert not result.B.requires_grad

    def test_a_is_left_alone(self):
        A = covariance(12)
        before = A.copy()
        result = inverse_decomposition(A, cycle(12))
        result.C[:] = 0
        np.testing.assert_array_equal(A, before)


class TestMethodChoice:
    @pytest.mark.parametrize("method", ["dual_newton", "primal_newton"])
    @pytest.mark.parametrize("max_steps", [1, 2, 5, 200])
    def test_one_small_matrix_takes_the_steps_of_a_batch(self, method, max_steps):
        """A batch runs the general iteration; a single small matrix one of its own."""
        A = covariance(12, condition=1e4)
        options = {"method": method, "max_steps": max_steps, "tolerance": np.inf}
        one = inverse_decomposition(A, random_pattern(12), **options)
        both = inverse_decomposition(np.stack([A, A]), random_pattern(12), **options)
        np.testing.assert_allclose(one.B, both.B[0], atol=1e-9 * np.abs(one.B).max())
        assert abs(one.certificate.iterations - both.certificate.iterations) <= (max_steps > 5)

    def test_smaller_side_is_chosen(self):
        A = covariance(12)
        assert inverse_decomposition(A, traceless_span(12, 3)).certificate.method == "primal_newton"
        assert inverse_decomposition(A, SUBSPACES["linear_precision"]()).certificate.method == "dual_newton"

    def test_large_problems_iterate_without_a_hessian(self):
        result = inverse_decomposition(covariance(150, condition=1e3), random_pattern(150))
        assert result.certificate.method == "dual_newton_cg"
        assert result.certificate.residual < 1e-12

    def test_closed_form_only_where_there_is_one(self):
        with pytest.raises(ValueError, match="does not apply"):
            inverse_decomposition(covariance(12), cycle(12), method="closed_form")

    def test_screening_splits_unconnected_parts(self):
        A = np.zeros((12, 12))
        A[:5, :5], A[5:, 5:] = covariance(5), covariance(7)
        edges = [(i, (i + 1) % 12) for i in range(12)] + [(0, 6), (2, 9)]
        result = inverse_decomposition(A, SparsityPattern(12, edges))
        assert result.certificate.method.startswith("screened+")
        reference = inverse_decomposition(A, SparsityPattern(12, edges), method="dual_newton")
        np.testing.assert_allclose(result.B, reference.B, rtol=1e-9, atol=1e-11)

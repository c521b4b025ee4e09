"""The marginal solver: exactness, limits, warm starts, and loud failure."""

import numpy as np
import pytest
import torch

from heliostat.linalg import ConvergenceError, KroneckerSum, inverse_decomposition, kronecker_sum_from_marginals
from tests.support.logdet_problems import covariance


def marginals(p, q, seed=0, spread=4.0):
    """Those of a random positive matrix: positive, equal sums."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.exp(spread * torch.randn(p, q, generator=generator, dtype=torch.float64))
    return entries.sum(1), entries.sum(0)


def mismatch(solution, rows, cols):
    entries = 1 / (solution.left[..., :, None] + solution.right[..., None, :])
    gaps = [(entries.sum(-1) - rows).abs() / rows, (entries.sum(-2) - cols).abs() / cols]
    return max(float(gap.max()) for gap in gaps)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 5), (5, 1), (4, 7), (7, 4), (40, 40), (3, 200)])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_both_marginals_are_met(p, q, spread):
    rows, cols = marginals(p, q, spread=spread)
    solution = kronecker_sum_from_marginals(rows, cols)
    assert mismatch(solution, rows, cols) < 1e-12
    assert float(solution.left.min()) > 0
    assert abs(float(solution.left.min() - solution.right.min())) < 1e-9 * float(solution.left.min())
    assert solution.num_steps <= 25


def test_marginals_over_twelve_orders_of_magnitude():
    rows, cols = torch.logspace(0, -12, 30, dtype=torch.float64), torch.logspace(0, -12, 20, dtype=torch.float64)
    cols = cols * rows.sum() / cols.sum()
    assert mismatch(kronecker_sum_from_marginals(rows, cols), rows, cols) < 1e-12


def test_known_sums_are_recovered():
    left, right = torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(9, dtype=torch.float64)
    entries = 1 / (left[:, None] + right)
    solution = kronecker_sum_from_marginals(entries.sum(1), entries.sum(0))
    torch.testing.assert_close(solution.left[:, None] + solution.right, left[:, None] + right, rtol=1e-11, atol=0)


def test_constant_marginals():
    solution = kronecker_sum_from_marginals(torch.full((4,), 3.0).double(), torch.full((6,), 2.0).double())
    torch.testing.assert_close(solution.left[:, None] + solution.right, torch.full((4, 6), 2.0).double())


def test_scaling_and_swapping():
    rows, cols = marginals(5, 8)
    one, scaled = kronecker_sum_from_marginals(rows, cols), kronecker_sum_from_marginals(1e9 * rows, 1e9 * cols)
    torch.testing.assert_close(scaled.left * 1e9, one.left, rtol=1e-10, atol=0)
    swapped = kronecker_sum_from_marginals(cols, rows)
    torch.testing.assert_close(swapped.right, one.left, rtol=1e-10, atol=0)


def test_a_batch_is_its_members():
    pairs = [marginals(5, 8, seed, spread=1 + seed) for seed in range(4)]
    rows, cols = (torch.stack(side).reshape(2, 2, -1) for side in zip(*pairs, strict=True))
    together = kronecker_sum_from_marginals(rows, cols)
    assert together.left.shape == (2, 2, 5)
    for k, pair in enumerate(pairs):
        alone = kronecker_sum_from_marginals(*pair)
        torch.testing.assert_close(together.left.reshape(4, 5)[k], alone.left, rtol=1e-9, atol=0)


def test_it_is_the_decomposition_over_kronecker_sums():
    A, space = covariance(20), KroneckerSum(4, 5)
    by_newton = inverse_decomposition(A, space, method="dual_newton")
    np.testing.assert_allclose(inverse_decomposition(A, space).B, by_newton.B, rtol=1e-9, atol=1e-10)


class TestWarmStart:
    def test_it_saves_steps_and_changes_nothing(self):
        rows, cols = marginals(30, 20)
        before = kronecker_sum_from_marginals(rows, cols)
        nudged = rows * (1 + 0.02 * torch.rand(30, dtype=torch.float64))
        cols = cols * nudged.sum() / cols.sum()
        cold, warm = (kronecker_sum_from_marginals(nudged, cols, start) for start in (None, before))
        assert warm.num_steps < cold.num_steps
        torch.testing.assert_close(warm.left, cold.left, rtol=1e-9, atol=0)

    def test_a_pair_of_tensors_will_do(self):
        rows, cols = marginals(6, 4)
        before = kronecker_sum_from_marginals(rows, cols)
        assert kronecker_sum_from_marginals(rows, cols, (before.left, before.right)).num_steps <= 2

    def test_after_a_change_of_scale(self):
        rows, cols = marginals(6, 4)
        before = kronecker_sum_from_marginals(rows, cols)
        assert kronecker_sum_from_marginals(1e6 * rows, 1e6 * cols, before).num_steps <= 2

    @pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
    def test_an_infeasible_one_is_ignored(self, bad):
        rows, cols = marginals(6, 4)
        solution = kronecker_sum_from_marginals(rows, cols, (torch.full((6,), bad), torch.full((4,), bad)))
        assert mismatch(solution, rows, cols) < 1e-12


class TestLargeProblems:
    """They start from the solution of a smaller one."""

    @pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
    def test_few_steps_reach_rounding(self, spread):
        rows, cols = marginals(90, 270, spread=spread)
        order = torch.randperm(270, generator=torch.Generator().manual_seed(0))
        solution = kronecker_sum_from_marginals(rows, cols[order])
        assert mismatch(solution, rows, cols[order]) < 1e-12
        assert solution.num_steps <= 6

    def test_equal_and_outlying_marginals(self):
        rows, cols = torch.ones(320, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
        rows[3], cols[60:] = 1e7, 1e-5
        cols[5] += rows.sum() - cols.sum()
        assert mismatch(kronecker_sum_from_marginals(rows, cols), rows, cols) < 1e-12

    def test_a_batch_is_its_members(self):
        pairs = [marginals(130, 140, seed, spread=1 + seed) for seed in range(3)]
        together = kronecker_sum_from_marginals(*(torch.stack(side) for side in zip(*pairs, strict=True)))
        for k, pair in enumerate(pairs):
            torch.testing.assert_close(together.left[k], kronecker_sum_from_marginals(*pair).left, rtol=1e-9, atol=0)

    def test_without_polish_it_stops_at_the_tolerance(self):
        rows, cols = marginals(130, 140)
        exact, rough = (
            kronecker_sum_from_marginals(rows, cols, tolerance=1e-2, polish=polish) for polish in (True, False)
        )
        assert exact.residual < 1e-12 < rough.residual <= 1e-2
        assert rough.num_steps < exact.num_steps


class TestFloat32:
    @pytest.mark.parametrize("spread", [1.0, 4.0])
    def test_float32_in_and_out(self, spread):
        rows, cols = (side.float() for side in marginals(50, 30, spread=spread))
        solution = kronecker_sum_from_marginals(rows, cols)
        assert solution.left.dtype == solution.right.dtype == torch.float32
        assert solution.residual < 1e-12  # of the float64 solution
        assert mismatch(solution, rows, cols) < 1e-5  # of what float32 can hold

    def test_sums_that_differ_by_rounding_are_averaged(self):
        rows, cols = marginals(5, 4)
        assert kronecker_sum_from_marginals(rows * (1 + 1e-5), cols).residual < 1e-12


@pytest.mark.parametrize(
    ("rows", "cols", "sentence"),
    [
        (torch.tensor([1.0, 0.0]), torch.tensor([1.0]), "lambda_ must be positive.*damp"),
        (torch.tensor([1.0]), torch.tensor([2.0, -1.0]), "mu must be positive"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "finite"),
        (torch.tensor([1.0]), torch.tensor([float("inf")]), "finite"),
        (torch.tensor([1.0]), torch.tensor([1.1]), "differ by 10"),
        (torch.tensor([1]), torch.tensor([1]), "floating point"),
        (torch.tensor(1.0), torch.tensor([1.0]), "batch axes"),
        (torch.ones(2, 3), torch.ones(3, 3), "batch axes"),
        (torch.ones(0), torch.ones(0), "none"),
    ],
)
def test_refusals(rows, cols, sentence, wrong_shapes):
    with pytest.raises(ValueError, match=sentence):
        kronecker_sum_from_marginals(rows, cols)


def test_running_out_of_steps_is_never_silent():
    rows, cols = marginals(12, 9)
    with pytest.raises(ConvergenceError, match="after 2 Newton steps") as caught:
        kronecker_sum_from_marginals(rows, cols, max_steps=2)
    best = caught.value.best
    assert float((best.left[:, None] + best.right).min()) > 0
    assert abs(mismatch(best, rows, cols) - best.residual) < 1e-6 * best.residual

"""Newton's inverse against the direct one: cold, warm, useless starts, and where rounding stops it."""

import pytest
import torch

from heliostat.linalg.newton_inverse import newton_inverse


def matrix(condition, n=12, dtype=torch.float64):
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    values = torch.logspace(0, -torch.log10(torch.tensor(float(condition))).item(), n, dtype=torch.float64)
    return ((basis * values) @ basis.T).to(dtype)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_a_cold_start_reaches_the_inverse(condition):
    a = matrix(condition)
    found = newton_inverse(a, tolerance=1e-8)
    torch.testing.assert_close(found.inverse, torch.linalg.inv(a), rtol=1e-6, atol=1e-6 * condition)
    assert not found.used_cholesky
    assert found.residual <= 1e-8 * len(a) ** 0.5
    assert found.residual == pytest.approx(float((torch.eye(12) - a @ found.inverse).norm()), abs=1e-12)


def test_a_warm_start_nearby_needs_one_or_two_steps():
    a = matrix(1e3)
    old = torch.linalg.inv(a)
    newer = 0.98 * a + 0.02 * matrix(1e2)
    warm, cold = newton_inverse(newer, old, tolerance=1e-2), newton_inverse(newer, tolerance=1e-2)
    assert warm.num_steps <= 4 < cold.num_steps
    assert not warm.restarted


def test_the_inverse_itself_is_returned_untouched():
    a = matrix(10.0)
    inverse = torch.linalg.inv(a)
    found = newton_inverse(a, inverse)
    assert found.inverse is inverse
    assert found.num_steps == 0


@pytest.mark.parametrize(
    "start", [torch.eye(12, dtype=torch.float64) * 1e6, torch.full((12, 12), float("nan")).double()]
)
def test_a_useless_start_is_left(start):
    a = matrix(1e2)
    found = newton_inverse(a, start, tolerance=1e-8)
    assert found.restarted
    torch.testing.assert_close(found.inverse, torch.linalg.inv(a), rtol=1e-5, atol=1e-5)


def test_where_float32_stalls_the_answer_is_direct():
    a = matrix(1e6, dtype=torch.float32)
    found = newton_inverse(a, tolerance=1e-6)
    assert found.used_cholesky
    assert float((a @ found.inverse - torch.eye(12)).norm()) < 1


def test_indefinite_and_broken_matrices_are_refused():
    with pytest.raises(ValueError, match="not positive definite"):
        newton_inverse(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="not positive definite"):
        newton_inverse(torch.full((2, 2), float("nan")))

import numpy as np
import pytest

from heliostat.train.diagnostics import mirror_means


def test_no_move_is_no_move():
    means = mirror_means(np.zeros(6), np.array([1, -1, 1, -1, 1, -1.0]), np.arange(6) % 2 == 0, tau=0.5)
    assert means["policy/lambda_hat"].value == 0
    assert means["policy/mean_ratio"].value == 1
    assert means["policy/chi_square"].value == 0
    assert "policy/solved" not in means


def test_at_the_optimum_the_subproblem_is_solved():
    """A binary problem whose exact PMD-mean solution comes from bisection here, not from the theory room."""
    p, tau, n = 0.25, 0.5, 4000
    r = np.array([1.0, 0.0])
    mass = np.array([p, 1 - p])

    def ratio(lam):
        rho = np.ones(2)
        for _ in range(200):  # log rho + lam rho = (r - p) / tau, by Newton in log rho
            f = np.log(rho) + lam * rho - (r - p) / tau
            rho = rho * np.exp(-f / (1 + lam * rho))
        return rho

    low, high = 0.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mass @ ratio(middle) > 1 else (low, middle)
    s = np.log(ratio((low + high) / 2))
    success = np.arange(n) < p * n
    means = mirror_means(np.where(success, *s), np.where(success, 1 - p, -p), success, tau)
    assert means["policy/solved"].value == pytest.approx(1.0, abs=1e-6)
    assert means["policy/mean_ratio"].value == pytest.approx(1.0, abs=1e-6)
    assert means["policy/lambda_hat"].value == pytest.approx((low + high) / 2, abs=1e-6)
    assert means["policy/log_ratio_correct"].value == pytest.approx(s[0])
    assert means["policy/log_ratio_incorrect"].value == pytest.approx(s[1])


def test_nothing_to_measure():
    assert mirror_means(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), 0.1) == {}

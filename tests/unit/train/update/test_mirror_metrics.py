import numpy as np
import pytest

from heliostat.train.update.mirror_metrics import mirror_means


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


def test_a_chi_square_is_never_negative_and_classes_add_up_to_it():
    """Sampled answers that all lost probability: mean rho^2 - 1 would be negative."""
    values = np.array([-0.4, -0.1, -0.7, -0.2])
    means = mirror_means(values, np.array([1, 1, -1, -1.0]), np.array([True, True, False, False]), tau=0.5)
    assert means["policy/chi_square"].value == pytest.approx(np.mean((np.exp(values) - 1) ** 2))
    assert all(mean.value > 0 for key, mean in means.items() if "chi_square" in key)


def split(values, success):
    """A step's numbers, and the same numbers of its two classes apart."""
    means = mirror_means(values, np.where(success, 0.75, -0.25), success, 0.3)
    names = ("log_ratio", "ratio", "chi_square")
    return means, {name: (means[f"policy/{name}_correct"], means[f"policy/{name}_incorrect"]) for name in names}


def test_both_classes_add_up_to_the_whole():
    values = np.random.default_rng(0).normal(0, 0.5, 32)
    means, apart = split(values, np.arange(32) % 4 == 0)
    for name, whole in (("log_ratio", "lambda_hat"), ("ratio", "mean_ratio"), ("chi_square", "chi_square")):
        correct, incorrect = apart[name]
        total = (correct + incorrect).value
        assert (-total if name == "log_ratio" else total) == pytest.approx(means[f"policy/{whole}"].value)
        assert (correct.count, incorrect.count) == (8, 24)


def test_a_class_that_is_absent_is_not_a_number_of_anything():
    _, apart = split(np.full(8, -0.1), np.zeros(8, dtype=bool))
    for correct, incorrect in apart.values():
        assert correct.count == 0
        assert incorrect.count == 8


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["mean", "partition", "between"])
def test_any_regression_at_its_optimum_is_solved_in_both_classes(baseline):
    """``s + m rho = A / tau`` solved here for any baseline, by an outer bisection on ``m`` for ``E rho = 1``."""
    p, tau, n = 0.25, 0.3, 4000
    partition = tau * np.log(p * np.exp(1 / tau) + 1 - p)
    offset = {"mean": p, "partition": partition, "between": 0.5 * (p + partition)}[baseline]
    target = (np.array([1.0, 0.0]) - offset) / tau

    def ratio(multiplier):
        rho = np.ones(2)
        for _ in range(200):
            rho = rho * np.exp(-(np.log(rho) + multiplier * rho - target) / (1 + multiplier * rho))
        return rho

    low, high = -1e-9, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.array([p, 1 - p]) @ ratio(middle) > 1 else (low, middle)
    s = np.log(ratio((low + high) / 2))
    success = np.arange(n) < p * n
    means = mirror_means(np.where(success, *s), np.where(success, *(tau * target)), success, tau)
    for key in ("policy/solved", "policy/solved_correct", "policy/solved_incorrect"):
        assert means[key].value == pytest.approx(1.0, abs=1e-5), key


def test_an_answer_that_lost_all_probability_is_infinitely_far_and_never_a_silent_nan():
    values = np.array([0.1, 0.2, -np.inf, -0.3])
    means = mirror_means(values, np.array([0.5, 0.5, -0.5, -0.5]), np.array([True, True, False, False]), 0.2)
    assert means["policy/lambda_hat"].value == np.inf
    assert means["policy/log_ratio_incorrect"].value == -np.inf
    assert means["policy/ratio_incorrect"].value == pytest.approx(np.exp(-0.3) / 2)
    assert "policy/solved" not in means
    assert not any(np.isnan(mean.value) for mean in means.values())


def test_nothing_to_measure():
    assert mirror_means(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), 0.1) == {}

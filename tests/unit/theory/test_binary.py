"""Correct against incorrect: the table, the closed forms, and how fast the regimes become exact."""

import math

import pytest
import torch

from heliostat.theory import binary_pmd_mean, binary_pmd_part, plentiful, scarce, tilted

# tau, p, then mean / part: ratio of correct, ratio of incorrect, lambda, new success, chi-square share.
# The summary this table comes from gives the shares .80 and .10 for the first and fourth row; .795 and .095 are exact.
TABLE = [
    (0.05, 0.01, "37.9", "100", "0.63", "2e-07", "0.43", "0.38", "1.00", "0.79"),
    (0.05, 0.05, "14.8", "20", "0.27", "4e-08", "1.10", "0.74", "1.00", "0.80"),
    (0.05, 0.2, "4.93", "5", "0.017", "1e-08", "2.92", "0.986", "1.00", "0.72"),
    (0.05, 0.9, "1.11", "1.11", "1.5e-08", "2e-09", "1.71", "1.00", "1.00", "0.09"),
    (0.5, 0.05, "4.26", "5.60", "0.83", "0.76", "0.11", "0.21", "0.28", "0.18"),
    (0.5, 0.5, "1.67", "1.76", "0.33", "0.24", "0.29", "0.83", "0.88", "0.20"),
]


def printed_like(value, text):
    """Whether a number prints as the text at the text's own number of digits."""
    if "e" in text:
        return f"{value:.{len(text.split('e')[0].replace('.', '')) - 1}e}" == text
    return f"{value:.{len(text.partition('.')[2])}f}" == text


@pytest.mark.parametrize("row", TABLE)
def test_the_table_to_its_printed_digits(row):
    tau, p, *texts = row
    mean, part = binary_pmd_mean(p, tau), binary_pmd_part(p, tau)
    values = (
        mean.ratio_correct,
        part.ratio_correct,
        mean.ratio_incorrect,
        part.ratio_incorrect,
        mean.lam,
        mean.success,
        part.success,
        mean.chi2_share,
    )
    for value, text in zip(values, texts, strict=True):
        assert printed_like(float(value), text), (float(value), text)


@pytest.mark.slow
def test_one_scalar_equation_gives_the_same_step():
    """With two classes the new success probability is the only unknown; plain bisection finds it."""
    for p in (1e-3, 0.05, 0.5, 0.95):
        for tau in (0.02, 0.2, 1.0, 20.0):
            low, high = math.log(p / (1 - p)), 800.0

            def excess(logit, p=p, tau=tau):
                log_new = -math.log1p(math.exp(-logit)) if logit > -700 else logit
                log_not = -logit + log_new
                s_right, s_wrong = log_new - math.log(p), log_not - math.log(1 - p)
                lam = -p * s_right - (1 - p) * s_wrong
                return s_right - s_wrong + lam * (math.exp(s_right) - math.exp(s_wrong)) - 1 / tau

            for _ in range(200):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if excess(middle) < 0 else (low, middle)
            gain = low - math.log(p / (1 - p))
            assert float(binary_pmd_mean(p, tau).logit_gain) == pytest.approx(gain, rel=1e-9)


@pytest.mark.slow
def test_part_raises_log_odds_by_one_over_tau_and_mean_by_less():
    p = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    tau = torch.tensor([[0.01], [0.3], [5.0]], dtype=torch.float64)
    mean, part = binary_pmd_mean(p, tau), binary_pmd_part(p, tau)
    torch.testing.assert_close(part.logit_gain, (1 / tau).expand(3, 5), rtol=1e-12, atol=0)
    predicted = 1 / tau - mean.lam * (mean.ratio_correct - mean.ratio_incorrect)
    torch.testing.assert_close(mean.logit_gain, predicted, rtol=1e-9, atol=0)
    torch.testing.assert_close(mean.chi2_share, 1 - tau * mean.logit_gain, rtol=1e-8, atol=1e-10)
    assert (mean.success < part.success + 1e-15).all()


def test_plentiful_regime_becomes_exact():
    for p in (0.1, 0.5, 0.9):
        errors = []
        for tau in (p / 5, p / 20, p / 80):
            exact, formula = binary_pmd_mean(p, tau), plentiful(p, tau)
            errors.append(abs(float(formula.lam / exact.lam) - 1))
            assert float(formula.ratio_correct / exact.ratio_correct) == pytest.approx(
                1, abs=5 * math.exp(-p / tau) + 1e-14
            )
        assert errors[2] < 1e-9
        assert errors[0] > errors[1] > errors[2]
        # Wrong answers keep e^{-p/tau} of their mass: exact up to a factor that tends to one.
        assert float(exact.ratio_incorrect / formula.ratio_incorrect) == pytest.approx(1, abs=1e-6)
        assert float(exact.logit_gain - formula.logit_gain) == pytest.approx(0, abs=1e-6)


def test_scarce_regime_becomes_exact():
    tau = 0.05
    errors = []
    for p in (1e-3, 1e-5, 1e-7, 1e-9):
        exact, formula = binary_pmd_mean(p, tau), scarce(p, tau)
        errors.append(abs(float(formula.ratio_correct / exact.ratio_correct) - 1))
        assert float(formula.lam / exact.lam) == pytest.approx(1, abs=20 * errors[-1] + 0.05)
        implicit = math.sqrt((1 / tau - math.log(float(formula.ratio_correct))) / p)
        assert float(formula.ratio_correct) == pytest.approx(implicit, rel=1e-12)
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-4
    assert float(exact.success) < 3 * math.sqrt(p / tau)


def test_vanishing_p_and_large_tau_are_the_tilt():
    for p, tau, tolerance in ((1e-30, 0.05, 1e-9), (1e-9, 0.5, 1e-6), (0.3, 1e3, 1e-3), (0.8, 1e4, 1e-3)):
        exact, formula = binary_pmd_mean(p, tau), tilted(p, tau)
        assert float(exact.ratio_correct) == pytest.approx(float(formula.ratio_correct), rel=tolerance)
        assert float(exact.lam) == pytest.approx(float(formula.lam), rel=tolerance)
    assert float(scarce(1e-30, 0.05).ratio_correct) == pytest.approx(math.exp(20), rel=1e-9)


def test_what_the_page_says_about_lambda_and_chi_square():
    p = torch.logspace(-6, -1e-3, 800, dtype=torch.float64)
    p = torch.cat([p, 1 - p.flip(0)]).sort().values
    step = binary_pmd_mean(p, 0.01)
    assert 0.4 < float(p[step.lam.argmax()]) < 0.6
    assert float(step.lam[0]) < 0.01
    assert float(step.lam[-1]) < 0.01
    chi_square = p * step.ratio_correct**2 + (1 - p) * step.ratio_incorrect**2 - 1
    assert round(float(0.01 * chi_square.max()), 2) == 0.91
    # Below p ~ tau the chi-square share falls again.
    share = binary_pmd_mean(torch.tensor([1e-6, 0.03, 0.9], dtype=torch.float64), 0.05).chi2_share
    assert share[1] > share[0]
    assert share[1] > share[2]
    largest = [
        float(torch.stack([s.ratio_correct, s.ratio_incorrect]).log().abs().max())
        for s in (binary_pmd_mean(0.05, 0.05), binary_pmd_part(0.05, 0.05))
    ]
    assert [round(value, 1) for value in largest] == [2.7, 17.0]


@pytest.mark.parametrize("call", [binary_pmd_mean, binary_pmd_part, plentiful, scarce, tilted])
@pytest.mark.parametrize(("p", "tau", "message"), [(0.0, 0.1, "success"), (1.0, 0.1, "success"), (0.5, -1.0, "tau")])
def test_bad_input_is_refused(call, p, tau, message):
    with pytest.raises(ValueError, match=message):
        call(p, tau)

"""Bad input is one clear sentence; the rest is normalised."""

import math

import pytest
import torch

from heliostat.theory import pmd_baseline, pmd_mean, pmd_part

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("method", [pmd_mean, pmd_part])
@pytest.mark.parametrize(
    ("probs", "rewards", "tau", "message"),
    [
        ([], [], 0.1, "action set is empty"),
        (0.5, [1.0], 0.1, "action set is empty"),
        ([0.5, 0.4], [1.0, 0.0], 0.1, "sum to one within 1e-06; they sum to 0.9"),
        ([1.2, -0.2], [1.0, 0.0], 0.1, "negative or NaN"),
        ([NAN, 1.0], [1.0, 0.0], 0.1, "negative or NaN"),
        ([0.0, 0.0], [1.0, 0.0], 0.1, "sum to one"),
        ([0.5, 0.5], [NAN, 0.0], 0.1, "rewards must be finite"),
        ([0.5, 0.5], [INF, 0.0], 0.1, "rewards must be finite"),
        ([0.0, 1.0], [-INF, 0.0], 0.1, "rewards must be finite"),
        ([0.5, 0.5], 1.0, 0.1, "one value per action"),
        ([0.5, 0.5], [1.0, 0.0, 0.0], 0.1, "do not broadcast"),
        ([[0.5, 0.5]] * 2, [1.0, 0.0], [0.1, 0.2, 0.3], "do not broadcast"),
        ([0.5, 0.5], [1.0, 0.0], 0.0, "tau must be positive; got 0"),
        ([0.5, 0.5], [1.0, 0.0], -0.1, "tau must be positive; got -0.1"),
        ([0.5, 0.5], [1.0, 0.0], NAN, "tau must be finite"),
        ([0.5, 0.5], [1.0, 0.0], INF, "tau must be finite"),
        ([0.5, 0.5], [1e308, 0.0], 1e-4, "exceeds the float64 range"),
    ],
)
def test_bad_input_is_one_sentence(method, probs, rewards, tau, message):
    with pytest.raises(ValueError, match=message) as caught:
        method(probs, rewards, tau)
    assert "\n" not in str(caught.value)


def test_lengths_baseline_and_the_two_forms_of_a_policy_are_checked():
    half, r = [0.5, 0.5], [1.0, 0.0]
    for lengths, message in (([0.0, 1.0], "lengths must be positive"), ([INF, 1.0], "lengths must be finite")):
        with pytest.raises(ValueError, match=message):
            pmd_mean(half, r, 0.1, lengths)
    with pytest.raises(ValueError, match="baseline must be finite"):
        pmd_baseline(half, r, 0.1, NAN)
    with pytest.raises(ValueError, match="baseline has shape"):
        pmd_baseline([half, half], r, 0.1, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="baseline has shape"):
        pmd_baseline(half, r, [0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="either as probs or as log_probs"):
        pmd_mean(half, r, 0.1, log_probs=half)
    with pytest.raises(ValueError, match="either as probs or as log_probs"):
        pmd_mean(None, r, 0.1)
    with pytest.raises(ValueError, match="sum to one"):
        pmd_mean(None, r, 0.1, log_probs=[0.0, 0.0])


def test_probabilities_within_the_tolerance_are_normalised():
    step = pmd_mean([0.5 + 4e-7, 0.5], [1.0, 0.0], 0.3)
    assert float(step.probs.sum()) == pytest.approx(1.0, abs=1e-14)
    single = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float32)
    assert pmd_mean(single, [1.0, 0.0, 0.0], 0.3).probs.dtype == torch.float64


def test_actions_of_probability_zero_keep_it_and_change_nothing():
    for method in (pmd_mean, pmd_part):
        padded = method([0.3, 0.0, 0.7], [1.0, 50.0, 0.0], 0.1)
        plain = method([0.3, 0.7], [1.0, 0.0], 0.1)
        assert float(padded.probs[1]) == 0.0
        assert float(padded.log_ratio[1]) == 0.0
        torch.testing.assert_close(padded.log_ratio[[0, 2]], plain.log_ratio, rtol=1e-13, atol=0)
        torch.testing.assert_close(padded.lam, plain.lam, rtol=1e-12, atol=0)
        assert float(padded.certificate.worst) < 1e-13


def test_probs_and_log_probs_say_the_same():
    probs = torch.tensor([0.02, 0.38, 0.6], dtype=torch.float64)
    a, b = pmd_mean(probs, [1.0, 0.5, 0.0], 0.1), pmd_mean(None, [1.0, 0.5, 0.0], 0.1, log_probs=probs.log())
    torch.testing.assert_close(a.log_ratio, b.log_ratio, rtol=1e-13, atol=1e-15)

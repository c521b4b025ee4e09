import math

import numpy as np
import pytest

from heliostat.monitors.panel import calibration_gap, prompt_information


def test_calibration_is_zero_in_expectation_under_the_policy_itself():
    p = np.array([0.6, 0.3, 0.1])
    entropy = -(p * np.log(p)).sum()
    counts = np.array([6, 3, 1])
    drawn = np.repeat(np.arange(3), counts)
    assert calibration_gap(np.full(10, entropy), np.log(p)[drawn]) == pytest.approx(0.0, abs=1e-12)
    assert calibration_gap(np.zeros(4), np.zeros(4)) == 0.0
    assert calibration_gap(np.full(2, 0.1), np.full(2, -2.0)) == pytest.approx(-1.9), "sure and wrong"


def test_information_against_an_enumerated_channel():
    """Answers of two prompts, each as often as it is likely: the proxy is the mutual information of the channel."""
    channel = np.array([[0.75, 0.25], [0.25, 0.75]])
    logp = np.log(channel)
    total = sum(
        channel[0, a] * channel[1, b] * prompt_information(np.stack([logp[:, a], logp[:, b]]))
        for a in range(2)
        for b in range(2)
    )
    marginal = channel.mean(axis=0)
    assert total == pytest.approx(float((0.5 * channel * np.log(channel / marginal)).sum()))


def test_information_limits():
    assert prompt_information(np.log(np.full((5, 5), 0.2))) == pytest.approx(0.0)
    apart = np.where(np.eye(8, dtype=bool), -3.0, -900.0)
    assert prompt_information(apart) == pytest.approx(math.log(8))

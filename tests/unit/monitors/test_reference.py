import json

import numpy as np
import pytest

from heliostat.monitors import Reference


def test_an_early_reference_is_the_median_of_its_window_and_never_moves():
    values = np.random.default_rng(0).normal(3, 2, 200).tolist()
    reference = Reference(40, skip=20)
    for index, value in enumerate(values):
        assert reference.ready == (index >= 60)
        reference.add(value)
    assert reference.centre() == np.median(values[20:60])
    deviations = np.abs(np.asarray(values[20:60]) - np.median(values[20:60]))
    assert reference.spread() == pytest.approx(1.4826 * np.median(deviations))


def test_a_rolling_reference_follows():
    reference = Reference(5, rolling=True, least=3)
    for value in range(100):
        reference.add(value)
    assert reference.centre() == 97


def test_the_spread_estimates_a_normal_deviation():
    reference = Reference(20000)
    reference.values = np.random.default_rng(1).normal(0, 3, 20000).tolist()
    assert reference.spread() == pytest.approx(3, rel=0.03)


def test_a_constant_signal_has_some_spread():
    reference = Reference(3)
    for _ in range(3):
        reference.add(5.0)
    assert reference.spread() == pytest.approx(0.05)
    reference.least_spread = 0.2
    assert reference.spread() == 0.2


def test_it_continues_from_json():
    first, second = Reference(10, skip=2, rolling=True), Reference(10, skip=2, rolling=True)
    for value in np.random.default_rng(2).random(30).tolist():
        first.add(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second == first

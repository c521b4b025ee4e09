import json
from itertools import pairwise

import numpy as np
import pytest

from heliostat.monitors import Cusum, Ewma, Limit, Multiple, Offset, Reference, RobustZ


def standard_reference():
    """Median 0 and spread 1, known beforehand, as textbook run lengths assume."""
    reference = Reference(3)
    reference.values, reference.seen = [-1 / 1.4826, 0.0, 1 / 1.4826], 3
    return reference


def alarms(detector, values):
    return [index for index, value in enumerate(values) if (r := detector.update(value)) is not None and r.alarm]


@pytest.mark.slow
def test_cusum_alarms_once_in_465_independent_steps_on_two_sides_and_930_on_one():
    """Textbook run lengths (slack 0.5, threshold 5), by simulation."""
    values = np.random.default_rng(0).normal(size=120_000).tolist()
    two_sided = alarms(Cusum(standard_reference()), values)
    one_sided = alarms(Cusum(standard_reference(), side="high"), values)
    assert len(values) / len(two_sided) == pytest.approx(465, rel=0.2)
    assert len(values) / len(one_sided) == pytest.approx(930, rel=0.25)
    gaps = np.diff([0, *two_sided])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.25), "alarms without a cause come at random"


def test_cusum_by_its_definition():
    detector, high, low = Cusum(standard_reference(), threshold=1e9), 0.0, 0.0
    for value in np.random.default_rng(1).normal(0.3, 1, 50).tolist():
        reading = detector.update(value)
        high, low = max(0.0, high + value - 0.5), max(0.0, low - value - 0.5)
        assert reading.statistic == pytest.approx(max(high, low))


@pytest.mark.parametrize("side", ["high", "low"])
def test_cusum_finds_a_small_shift_and_when_it_began(side):
    sign = 1 if side == "high" else -1
    values = np.concatenate([np.zeros(30), np.full(30, 1.5 * sign)]).tolist()
    detector = Cusum(standard_reference())
    readings = [detector.update(value) for value in values]
    step, reading = next((step, reading) for step, reading in enumerate(readings) if reading.alarm)
    assert step - reading.onset == 30
    assert step == 30 + 5  # six steps of 1 above the slack exceed 5
    assert side in reading.name


def test_ewma_has_unit_variance_and_finds_a_shift_that_single_values_hide():
    rng = np.random.default_rng(2)
    detector = Ewma(standard_reference(), threshold=1e9)
    statistics = [detector.update(value).statistic for value in rng.normal(size=40_000).tolist()]
    assert np.std(statistics[500:]) == pytest.approx(1.0, rel=0.1)
    shifted = rng.normal(0.9, 1, 100).tolist()
    assert alarms(Ewma(standard_reference()), shifted)
    assert not alarms(RobustZ(standard_reference()), shifted)


def test_ewma_with_weight_one_is_robust_z():
    values = np.random.default_rng(3).normal(size=20).tolist()
    smooth, plain = Ewma(standard_reference(), weight=1.0), RobustZ(standard_reference())
    for value in values:
        assert smooth.update(value).statistic == pytest.approx(plain.update(value).statistic)


def test_robust_z_is_not_fooled_by_the_outliers_it_has_seen():
    values = np.random.default_rng(6).uniform(-0.2, 0.2, 40).tolist()
    values[10] = values[20] = 1000.0
    detector = RobustZ(Reference(200, rolling=True, least=5), threshold=6.0)
    found = alarms(detector, [*values, 2.0])
    assert found == [10, 20, 40]


def test_a_value_is_judged_before_it_is_remembered():
    detector = RobustZ(Reference(4, rolling=True, least=4))
    assert [detector.update(v) for v in (1.0, 2.0, 3.0, 4.0)] == [None] * 4
    assert detector.update(1e6).normal == 2.5


@pytest.mark.parametrize("hold", [1, 3])
def test_a_multiple_must_hold(hold):
    detector = Multiple(Reference(2), 3.0, hold=hold)
    readings = [detector.update(v) for v in (1.0, 1.0, 2.9, 3.1, 3.2, 3.3, 1.0)]
    assert [r.alarm for r in readings[2:]] == [False, hold == 1, hold == 1, True, False]
    assert readings[5].onset == 2


def test_multiples_below_the_floor_are_rounding():
    rounding = Multiple(Reference(2), 3.0, floor=1e-3)
    assert alarms(rounding, [1e-12, 1e-12, 1e-10, 2e-3]) == [3]
    low = Multiple(Reference(1), 0.5, side="low", floor=0.1)
    assert alarms(low, [0.05, 0.0]) == []
    assert alarms(Multiple(Reference(1), 0.5, side="low", floor=0.1), [1.0, 0.6, 0.4]) == [2]


def test_a_level_of_zero():
    assert alarms(Multiple(Reference(1), 3.0), [0.0, 0.0, 1e-9]) == []
    assert alarms(Multiple(Reference(1), 3.0, floor=1e-6), [0.0, 0.0, 1e-9, 1e-3]) == [3]


def test_limits_and_offsets():
    assert alarms(Limit(0.5, side="low"), [0.6, 0.5, 0.4]) == [2]
    assert alarms(Limit(0.5), [0.5, 0.6]) == [1]
    assert alarms(Limit(0.5, hold=3), [0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.6, 0.4]) == [5, 6]
    assert alarms(Offset(Reference(1), 0.1), [0.3, 0.39, 0.41, 0.2]) == [2]


MAKERS = [
    lambda: Limit(1.0),
    lambda: Limit(1.0, hold=2),
    lambda: Multiple(Reference(5, skip=2), 1.2, hold=2),
    lambda: Offset(Reference(5), 0.3, hold=2),
    lambda: RobustZ(Reference(10, rolling=True, least=4), 2.0),
    lambda: Ewma(Reference(10, rolling=True, least=4), threshold=1.0),
    lambda: Cusum(Reference(10, rolling=True, least=4), threshold=2.0),
]


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_detector_continues_from_json_as_if_never_stopped(make, cut):
    values = np.random.default_rng(4).normal(1, 1, 60).tolist()
    whole, first, second = make(), make(), make()
    expected = [whole.update(value) for value in values]
    for value in values[:cut]:
        first.update(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(value) for value in values[cut:]] == expected[cut:]
    assert any(r is not None and r.alarm for r in expected)


def test_alarms_of_independent_values_are_spread_out():
    values = np.random.default_rng(5).normal(size=3000).tolist()
    found = alarms(Cusum(Reference(200, rolling=True, least=100)), values)
    assert all(later > earlier for earlier, later in pairwise(found))
    assert len(found) < 30

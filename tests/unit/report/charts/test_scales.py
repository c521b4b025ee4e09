"""Axes: they hold their data, their ticks are round and few, and labels tell ticks apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heliostat.report.charts.scales import (
    format_quantity,
    format_seconds,
    format_value,
    linear_scale,
    log_scale,
    step_scale,
    wants_log,
)

# Within nine digits of each other: finer differences are drawn as one value.
numbers = st.floats(-1e12, 1e12).map(lambda value: float(f"{value:.6g}"))


@given(st.lists(numbers, min_size=1, max_size=30))
@example([5e-324])
def test_linear_axes_hold_their_data_on_few_even_ticks(values: list[float]) -> None:
    scale = linear_scale(values)
    slack = 1e-9 * (scale.high - scale.low)
    assert all(scale.low - slack <= value <= scale.high + slack for value in values)
    assert 2 <= len(scale.ticks) <= 8
    gaps = [after - before for before, after in zip(scale.ticks, scale.ticks[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
    assert scale.fraction(scale.low) == 0
    assert scale.fraction(scale.high) == 1


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_axes_of_one_magnitude_label_every_tick_differently(values: list[float]) -> None:
    for scale in (linear_scale(values), log_scale(values)):
        labels = scale.labels()
        assert len(set(labels)) == len(labels) == len(scale.ticks)


@given(st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=30))
def test_logarithmic_axes_hold_their_data_between_powers_of_ten(values: list[float]) -> None:
    scale = log_scale(values)
    assert all(scale.low * (1 - 1e-6) <= value <= scale.high * (1 + 1e-6) for value in values)
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in scale.ticks)
    assert len(scale.ticks) <= 7


def test_logarithmic_shares_are_written_in_percent_too() -> None:
    assert log_scale([0.1, 10.0]).labels("fraction") == ["10%", "100%", "1000%"]


def test_logarithmic_fractions_are_even_in_powers_and_zero_lies_at_the_bottom() -> None:
    scale = log_scale([1e-4, 1.0])
    assert [scale.fraction(value) for value in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert scale.fraction(0.0) == scale.fraction(-1.0) == 0


def test_a_constant_series_lies_inside_its_axis() -> None:
    for value in (3.0, -3.0, 1e-7, 24.0):
        scale = linear_scale([value, value])
        assert 0.2 < scale.fraction(value) < 0.9
    assert (linear_scale([0.0]).low, linear_scale([0.0]).high) == (0, 1)
    assert (linear_scale([]).low, linear_scale([]).high) == (0, 1)


def test_bounds_are_kept_and_zero_joins_only_when_near() -> None:
    assert linear_scale([0.4, 0.41], (0.0, 1.0)).ticks[-1] == 1.0
    assert linear_scale([1.0, 10.0]).low == 0
    assert linear_scale([1.0, 1.1]).low > 0.9


def test_step_axes_end_at_the_data_and_mark_whole_steps() -> None:
    scale = step_scale(1, 157)
    assert (scale.low, scale.high) == (1, 157)
    assert all(tick == int(tick) and 1 <= tick <= 157 for tick in scale.ticks)
    assert step_scale(1, 4).ticks == (1, 2, 3, 4)
    assert step_scale(5, 5).fraction(5) == 0.5
    assert 0.0 in step_scale(-120, 200).ticks


def test_log_axes_are_wanted_for_spread_not_for_single_zeros_or_signs() -> None:
    assert wants_log([1, 2, 3, 1000, 5])
    assert not wants_log([1, 2, 3, 4, 5])
    assert not wants_log([-1, -2, 3, 1000, 5])
    assert not wants_log([1, 1000])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8766, "fraction", "87.7%"),
        (-0.00001, "fraction", "0.0%"),
        (0.0, "", "0"),
        (-0.25, "", "−0.25"),
        (3e-4, "", "3e−4"),
        (1234.0, "", "1234"),
        (980_000, "", "980k"),
        (999_999, "", "1M"),
        (2.5e21, "", "2.5e21"),
    ],
)
def test_numbers_are_written_for_people(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_amounts_and_durations_carry_their_units() -> None:
    assert format_quantity(1.07e13, "FLOP") == "10.7 TFLOP"
    assert format_quantity(3.0, "FLOP") == "3 FLOP"
    assert [format_seconds(s) for s in (0.04, 9.94, 42, 245, 7800)] == [
        "0.0 s", "9.9 s", "42 s", "4 min 05 s", "2 h 10 min"
    ]  # fmt: skip
    assert format_seconds(59.7) == "1 min 00 s"

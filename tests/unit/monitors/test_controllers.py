"""Controllers against a simulated plant: entropy that decays on its own and rises with the output, with a delay."""

import json

import numpy as np
import pytest

from heliostat.monitors import BangBang, DualAscent, ProportionalIntegral
from heliostat.monitors.controllers import CONTROLLERS

TARGET = 0.6


def plant(controller, num_steps=600, strength=0.06, noise=0.01, start=1.0, frozen=lambda step: False, seed=0):
    """``H <- H - 0.02 H + strength u + noise``: without control it dies out, with u = 0.2 it stays at the target."""
    rng = np.random.default_rng(seed)
    entropy, values, outputs = start, [], []
    for step in range(num_steps):
        output = controller.update(entropy, TARGET, frozen(step))
        entropy = max(0.0, entropy * 0.98 + strength * output + noise * rng.normal())
        values.append(entropy)
        outputs.append(output)
    return np.asarray(values), np.asarray(outputs)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_law_holds_the_target_that_the_plant_alone_would_lose(name):
    alone, _ = plant(ProportionalIntegral(gain=0.0, integral_gain=0.0))
    assert alone[-100:].mean() < 0.1 * TARGET
    held, outputs = plant(CONTROLLERS[name]())
    assert held[-200:].mean() == pytest.approx(TARGET, rel=0.15)
    assert outputs.min() >= 0
    assert outputs.max() <= 1


def test_pi_has_no_limit_cycle():
    """Without noise it comes to rest; bang-bang with the same deadband would too, but moves its actuator further."""
    values, outputs = plant(ProportionalIntegral(), num_steps=1500, noise=0.0)
    assert np.ptp(outputs[-300:]) < 1e-3
    assert np.ptp(values[-300:]) < 1e-3
    assert abs(values[-1] - TARGET) <= 0.12 * TARGET


def test_pi_moves_its_actuator_less_than_bang_bang():
    _, smooth = plant(ProportionalIntegral(deadband=0.0), num_steps=2000)
    _, rough = plant(BangBang(deadband=0.0), num_steps=2000)
    assert np.abs(np.diff(smooth[500:])).mean() < np.abs(np.diff(rough[500:])).mean()


def test_pi_does_not_wind_up():
    """A target out of reach for 500 steps, then met: the output must leave saturation as soon as the sign changes."""
    controller = ProportionalIntegral(slew=1.0)
    for _ in range(500):
        controller.update(0.2, TARGET)
    assert controller.output == 1.0
    assert controller.integral_gain * controller.integral < 1.5
    num = 0
    while controller.output > 0.5:
        controller.update(1.2, TARGET)
        num += 1
    assert num < 10, "the integral of 500 steps was not paid back first"
    wound = ProportionalIntegral(slew=1.0)
    wound.integral = 500 * 0.6  # the value of plain integration
    for _ in range(num):
        wound.update(1.2, TARGET)
    assert wound.output == 1.0, "this test can fail"


def test_below_zero_it_does_not_wind_up_either():
    controller = ProportionalIntegral()
    for _ in range(500):
        controller.update(3.0, TARGET)
    assert controller.integral >= -1 / controller.integral_gain
    num = 0
    while controller.output < 0.05:
        controller.update(0.2, TARGET)
        num += 1
    assert num < 15


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_slew_limit_holds(name):
    controller = CONTROLLERS[name]()
    controller.slew = 0.03
    rng = np.random.default_rng(1)
    outputs = [controller.update(value, TARGET) for value in rng.uniform(0, 3, 300).tolist()]
    assert np.abs(np.diff([0.0, *outputs])).max() <= 0.03 + 1e-12


@pytest.mark.parametrize("name", CONTROLLERS)
def test_inside_the_deadband_nothing_moves(name):
    controller = CONTROLLERS[name]()
    for _ in range(60):
        controller.update(0.2, TARGET)
    for _ in range(60):
        controller.update(TARGET, TARGET)
    held = controller.output
    assert held > 0
    outputs = {controller.update(TARGET * (1 + 0.08 * (-1) ** i), TARGET) for i in range(50)}
    assert outputs == {held}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_frozen_means_frozen(name):
    controller = CONTROLLERS[name]()
    for _ in range(10):
        controller.update(0.3, TARGET)
    before = controller.state_dict()
    assert {controller.update(value, TARGET, frozen=True) for value in (0.0, 50.0, float("nan"))} == {before["output"]}
    assert controller.state_dict() == before


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_continues_from_json(name):
    values = np.random.default_rng(3).uniform(0.1, 1.0, 50).tolist()
    whole, first, second = (CONTROLLERS[name]() for _ in range(3))
    expected = [whole.update(value, TARGET) for value in values]
    for value in values[:20]:
        first.update(value, TARGET)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(value, TARGET) for value in values[20:]] == expected[20:]


def test_dual_ascent_starts_from_something():
    assert DualAscent().update(0.1, TARGET) > 0

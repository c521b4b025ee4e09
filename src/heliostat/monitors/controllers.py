r"""Controllers: the output of an actuator from the distance of a metric below its target.

    e = (target - measured) / target                                   inside the deadband: 0
    PI           u = clip(K_p e + K_i I, 0, 1),  I <- I + e unless that drives a saturated u further
    bang-bang    u <- clip(u + step sign(e), 0, 1)
    dual ascent  u <- clip(u e^{rate e}, least, 1)

The output ``u`` is a share of an actuator's range: 0 leaves the recipe as it is, 1 is as far as the actuator goes. It
never moves by more than ``slew`` in a step. ``frozen`` holds it: while sampler and trainer disagree, the metric shows a
bug and not the policy.

Left out: the actuators (``train.guard.actuators``) and the target (``guard``).

References: Astrom & Hagglund 2006, "Advanced PID Control" (anti-windup by conditional integration).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Controller(ABC):
    """One feedback law with its state.

    Attributes:
        deadband: relative errors up to this are taken as none.
        slew: largest change of the output in one step.
        smoothing: weight of the newest measurement in the moving average that is controlled.
        output: the current ``u``.
    """

    deadband: float = 0.1
    slew: float = 0.1
    smoothing: float = 0.3
    output: float = 0.0
    average: float | None = None

    def update(self, measured: float, target: float, frozen: bool = False) -> float:
        """Compute the next output.

        Args:
            target: the desired value of ``measured``, above 0.
            frozen: keep everything as it is, the measurement included.
        """
        if frozen:
            return self.output
        self.average = (
            measured if self.average is None else (1 - self.smoothing) * self.average + self.smoothing * measured
        )
        error = (target - self.average) / target
        wanted = self.law(error if abs(error) > self.deadband else 0.0)
        self.output = max(self.output - self.slew, min(self.output + self.slew, wanted))
        return self.output

    @abstractmethod
    def law(self, error: float) -> float:
        """Compute the output of the law, in [0, 1], before the slew limit."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"output": self.output, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.output, self.average = state["output"], state["average"]


@dataclass(slots=True)
class ProportionalIntegral(Controller):
    """PI with conditional integration: the integral is frozen while it would push a saturated output further.

    **Limits** ``integral_gain = 0``: proportional. Zero error forever: the output keeps its integral part.
    """

    gain: float = 0.5
    integral_gain: float = 0.05
    integral: float = 0.0

    def law(self, error: float) -> float:
        wanted = self.gain * error + self.integral_gain * self.integral
        if (0.0 <= wanted <= 1.0) or (wanted > 1.0 and error < 0) or (wanted < 0.0 and error > 0):
            self.integral += error
        return min(1.0, max(0.0, self.gain * error + self.integral_gain * self.integral))

    def state_dict(self) -> dict[str, Any]:
        return {"output": self.output, "average": self.average, "integral": self.integral}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.output, self.average, self.integral = state["output"], state["average"], state["integral"]


@dataclass(slots=True)
class BangBang(Controller):
    """A fixed step up while below the target, and down while above."""

    step: float = 0.02

    def law(self, error: float) -> float:
        return min(1.0, max(0.0, self.output + self.step * ((error > 0) - (error < 0))))


@dataclass(slots=True)
class DualAscent(Controller):
    """Multiplicative updates: the Lagrange multiplier of ``measured >= target``, as in soft actor-critic.

    Attributes:
        least: start and lower bound of the output; from exactly 0 a product never rises.
    """

    rate: float = 0.2
    least: float = 0.01

    def law(self, error: float) -> float:
        grown = max(self.least, self.output) * math.exp(self.rate * error)
        return min(1.0, max(self.least, grown))


CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "pi": ProportionalIntegral,
    "bang-bang": BangBang,
    "dual": DualAscent,
}
"""Feedback laws by the name a recipe gives them."""

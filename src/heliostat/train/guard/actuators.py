"""The actuators of the guard's controller: one trainer setting each, from the recipe's value to an extreme.

    entropy-bonus   rewards get -c log pi_gen(y), whose policy gradient is that of c times the entropy of whole answers
    variety-bonus   the same for successful completions only: a rare right answer is worth more than a common one
    clip-high       the upper clip of clipping objectives, up to 0.35: rare tokens may gain more
    covariance      share of tokens that lose their gradient, those that lower entropy most (``objectives.covariance``)
    tau             PMD's temperature, up to four times: steps stay closer to their anchor
    temperature     of sampling and training alike, up to a quarter more; use it last, since it trains another policy
    focus           ``train.focus`` up to 1: solved problems, whose updates only sharpen, are drawn less
    kl-ref          weight of the penalty to the reference, up to four times

Left out: the control law (``monitors.controllers``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from heliostat.config import ConfigError
from heliostat.train.data.curriculum import Curriculum
from heliostat.train.update.updater import Updater

MAX_ENTROPY_BONUS = 0.1
MAX_VARIETY_BONUS = 0.3
MAX_COVARIANCE_SHARE = 0.02


@dataclass(slots=True)
class Actuator:
    """One setting between the recipe's value (output 0) and its extreme (output 1)."""

    name: str
    base: float
    extreme: float
    apply: Callable[[float], None]
    value: float = 0.0

    def __post_init__(self) -> None:
        self.value = self.base

    def set(self, output: float) -> float:
        """Move the setting to a share of its range, and return its value."""
        self.value = self.base + output * (self.extreme - self.base)
        self.apply(self.value)
        return self.value


def build_actuator(name: str, updater: Updater, curriculum: Curriculum) -> Actuator | None:
    """Build the actuator that a recipe names; ``None`` for ``none``.

    Raises:
        ConfigError: the objective lacks the actuator's setting, or has it at 0.
    """
    return _MAKERS[name](name, updater, curriculum) if name != "none" else None


def _of_objective(key: str, extreme: Callable[[float], float], least: float = 0.0) -> Any:
    def make(name: str, updater: Updater, curriculum: Curriculum) -> Actuator:
        objective = updater.objective
        base = getattr(objective, key) if key in {field.name for field in fields(objective)} else 0.0
        if base <= least:
            raise ConfigError(
                f"guard.actuator = '{name}' turns objective.{key}, which objective '{objective.name}' lacks or has "
                "at 0; choose another actuator, or another objective"
            )

        def apply(value: float) -> None:
            changed: dict[str, Any] = {key: value}
            updater.objective = replace(updater.objective, **changed)

        return Actuator(name, float(base), extreme(float(base)), apply)

    return make


def _of_updater(key: str, extreme: float) -> Any:
    def make(name: str, updater: Updater, curriculum: Curriculum) -> Actuator:
        return Actuator(name, 0.0, extreme, lambda value: setattr(updater, key, value))

    return make


def _temperature(name: str, updater: Updater, curriculum: Curriculum) -> Actuator:
    base = updater.policy.temperature

    def apply(value: float) -> None:
        updater.policy.temperature = value
        if updater.reference is not None:
            updater.reference.temperature = value

    return Actuator(name, base, 1.25 * base, apply)


def _focus(name: str, updater: Updater, curriculum: Curriculum) -> Actuator:
    return Actuator(name, curriculum.focus, 1.0, lambda value: setattr(curriculum, "focus", value))


_MAKERS: dict[str, Callable[[str, Updater, Curriculum], Actuator]] = {
    "entropy-bonus": _of_updater("entropy_bonus", MAX_ENTROPY_BONUS),
    "variety-bonus": _of_updater("variety_bonus", MAX_VARIETY_BONUS),
    "covariance": _of_updater("covariance_share", MAX_COVARIANCE_SHARE),
    "clip-high": _of_objective("clip_high", lambda base: max(0.35, 1.25 * base)),
    "tau": _of_objective("tau", lambda base: 4 * base),
    "kl-ref": _of_objective("kl_ref", lambda base: 4 * base),
    "temperature": _temperature,
    "focus": _focus,
}

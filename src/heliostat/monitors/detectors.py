r"""Detectors: a value in, a statistic and an alarm out. Each owns its state, which a checkpoint keeps.

    robust z    z = (x - median) / spread
    EWMA        e <- (1 - w) e + w z,  compared in units of its own deviation sqrt(w / (2 - w))
    CUSUM       S <- max(0, S + z - slack) on either side; its onset is where the sum was last 0
    multiple    x / median of the run's own early values
    limit       x itself

A value is judged against the reference as it was before that value. On independent normal values a two-sided CUSUM with
slack 0.5 and threshold 5 alarms once in about 465 steps; autocorrelated signals alarm more often, which is why the
guard's own rules are counted on recorded healthy runs (``studies/guard``).

Left out: the monitored signals (``rules``) and the findings (``guard``).

References: Page 1954, Biometrika 41:100 (CUSUM); Roberts 1959, Technometrics 1:239 (EWMA).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.cards import Card
from heliostat.monitors.reference import Reference

Side = Literal["high", "low", "both"]
MAX_Z = 20.0
"""One extreme value raises one alarm; it must not fill a cumulative sum for the rest of the run."""


@dataclass(frozen=True, slots=True, repr=False)
class Reading(Card):
    """A detector's judgement of one value.

    Attributes:
        name: name of the statistic.
        statistic: the value that was compared with the threshold.
        threshold: the threshold.
        normal: the run's baseline, where there is one.
        onset: number of values before this one over which the change has built up.
    """

    name: str
    statistic: float
    threshold: float
    alarm: bool
    normal: float | None = None
    onset: int = 0


class Detector(ABC):
    """A statistical test that reads one value at a time."""

    @abstractmethod
    def update(self, value: float, learns: bool = True) -> Reading | None:
        """Judge a finite value; ``None`` while there is nothing to compare with.

        Args:
            learns: whether the value enters the reference.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""


@dataclass(slots=True)
class Limit(Detector):
    """A hard limit on the value itself.

    Args:
        hold: values in a row that must be beyond.
    """

    threshold: float
    side: Side = "high"
    hold: int = 1
    beyond: int = 0

    def update(self, value: float, learns: bool = True) -> Reading:
        out = value > self.threshold if self.side == "high" else value < self.threshold
        self.beyond = self.beyond + 1 if out else 0
        alarm = self.beyond >= self.hold
        return Reading("value", value, self.threshold, alarm, onset=max(0, self.beyond - 1))

    def state_dict(self) -> dict[str, Any]:
        return {"beyond": self.beyond}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.beyond = int(state["beyond"])


@dataclass(slots=True)
class Referenced(Detector):
    """A detector that compares with a reference of the run's own values."""

    reference: Reference

    def update(self, value: float, learns: bool = True) -> Reading | None:
        centre = self.reference.centre()
        reading = None if centre is None else self.judge(value, centre)
        if learns:
            self.reference.add(value)
        return reading

    @abstractmethod
    def judge(self, value: float, normal: float) -> Reading:
        """Compare a value with the reference as it stands."""

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])

    def standardized(self, value: float, normal: float) -> float:
        """Compute the robust z-score, clipped to ``MAX_Z``."""
        return max(-MAX_Z, min(MAX_Z, (value - normal) / self.reference.spread()))


@dataclass(slots=True)
class Held(Referenced):
    """A detector whose alarm needs several values in a row beyond its threshold.

    Args:
        hold: how many.
    """

    threshold: float
    hold: int = 1
    beyond: int = 0

    def held(self, name: str, statistic: float, out: bool, normal: float) -> Reading:
        """Count this value and return the reading."""
        self.beyond = self.beyond + 1 if out else 0
        onset = max(0, self.beyond - 1)
        return Reading(name, statistic, self.threshold, self.beyond >= self.hold, normal, onset)

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference.state_dict(), "beyond": self.beyond}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
        self.beyond = int(state["beyond"])


@dataclass(slots=True)
class Multiple(Held):
    """The value over the reference's median, for quantities that scale: norms, divergences, lengths.

    Args:
        floor: values below this are never high (nor, for ``side = "low"``, is a reference below it): a divergence of
            1e-12 is rounding, and so is ten times that.
    """

    side: Side = "high"
    floor: float = 0.0

    def judge(self, value: float, normal: float) -> Reading:
        nothing = float("inf") if value > self.floor > 0 else 1.0  # without a floor, a level of 0 is no level
        ratio = value / normal if normal > 0 else nothing
        if self.side == "high":
            out = ratio > self.threshold and value > self.floor
        else:
            out = ratio < self.threshold and normal > self.floor
        return self.held("multiple of its own level", ratio, out, normal)


@dataclass(slots=True)
class Offset(Held):
    """The value minus the reference's median, for shares."""

    def judge(self, value: float, normal: float) -> Reading:
        gap = value - normal
        return self.held("rise above its own level", gap, gap > self.threshold, normal)


@dataclass(slots=True)
class RobustZ(Referenced):
    """One value far from the others."""

    threshold: float = 6.0
    side: Side = "both"

    def judge(self, value: float, normal: float) -> Reading:
        z = self.standardized(value, normal)
        return Reading("robust z", z, self.threshold, _beyond(z, self.threshold, self.side), normal)


@dataclass(slots=True)
class Ewma(Referenced):
    """A small shift that lasts.

    **Limits** ``weight = 1``: robust z.
    """

    weight: float = 0.05
    threshold: float = 3.5
    side: Side = "both"
    average: float = 0.0

    def judge(self, value: float, normal: float) -> Reading:
        z = self.standardized(value, normal)
        self.average = (1 - self.weight) * self.average + self.weight * z
        statistic = self.average / (self.weight / (2 - self.weight)) ** 0.5
        return Reading("EWMA", statistic, self.threshold, _beyond(statistic, self.threshold, self.side), normal)

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference.state_dict(), "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
        self.average = float(state["average"])


@dataclass(slots=True)
class Cusum(Referenced):
    """A shift of any size above ``2 slack``, found sooner the larger it is; after an alarm it starts again."""

    slack: float = 0.5
    threshold: float = 5.0
    side: Side = "both"
    high: float = 0.0
    low: float = 0.0
    since: dict[str, int] = field(default_factory=lambda: {"high": 0, "low": 0})

    def judge(self, value: float, normal: float) -> Reading:
        z = self.standardized(value, normal)
        self.high = max(0.0, self.high + z - self.slack)
        self.low = max(0.0, self.low - z - self.slack)
        for name, total in (("high", self.high), ("low", self.low)):
            self.since[name] = self.since[name] + 1 if total > 0 else 0
        sides = {"high": self.high, "low": self.low}
        watched = sides if self.side == "both" else {self.side: sides[self.side]}
        name, statistic = max(watched.items(), key=lambda item: item[1])
        reading = Reading(f"CUSUM ({name} side)", statistic, self.threshold, statistic > self.threshold, normal,
                          max(0, self.since[name] - 1))  # fmt: skip
        if reading.alarm:
            self.high = self.low = 0.0
            self.since = {"high": 0, "low": 0}
        return reading

    def state_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference.state_dict(),
            "high": self.high,
            "low": self.low,
            "since": dict(self.since),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
        self.high, self.low, self.since = float(state["high"]), float(state["low"]), dict(state["since"])


def _beyond(statistic: float, threshold: float, side: Side) -> bool:
    sized = {"high": statistic, "low": -statistic, "both": abs(statistic)}[side]
    return sized > threshold

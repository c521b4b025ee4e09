"""The guard's judgement: a step's signals in, findings out. It knows no trainer, so it also reads finished runs.

A rule reports the start of its alarm and is silent while it lasts. A metric that is not finite is a finding of its own,
independent of the rules. The same signals in the same order always give the same findings. The whole state goes into
the checkpoint.

Left out: actions (``train.guard.run_guard``) and signals (``signal``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from heliostat.cards import Card
from heliostat.monitors.detectors import Detector, Reading
from heliostat.monitors.rules import Level, Rule, default_rules

MUST_BE_FINITE = (
    *("reward/mean", "policy/entropy", "policy/lambda_hat", "loss/objective", "optim/grad_norm", "length/mean"),
    *("loss", "grad_norm"),  # metrics of transformers' Trainer
)
"""Metrics that are finite unless something is broken; ratios may overflow in a healthy run."""
NUM_ONSETS = 100
"""Number of earlier steps that are kept for each rule."""
ABSOLUTE_STATISTIC = "outright"  # the word that run folders hold
"""The name of the statistic in findings that have none, only a sentence."""
SCALED = frozenset({"optim/update_ratio"})
"""Signals that scale with the learning rate: while the guard holds it down, they are judged and not learned from."""


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Card):
    """One alarm with the statistic that caused it.

    Attributes:
        step: step of the alarm; ``onset`` is the step at which the change began, as far as the detector can tell.
        value: the signal's value; ``normal`` is the run's baseline, where there is one.
        statistic: the value that was compared with ``threshold``, called ``statistic_name``.
    """

    rule: str
    level: Level
    step: int
    onset: int
    key: str
    value: float | None
    statistic_name: str
    statistic: float | None
    threshold: float | None
    normal: float | None
    meaning: str
    advice: str

    def sentence(self) -> str:
        """Format the finding as one line for people."""
        if self.is_absolute:
            return f"{f'step {self.step}' if self.step else 'before training'}: {self.meaning}"
        if self.statistic is None or self.threshold is None:
            return f"step {self.step}: {self.key}: {self.meaning}"
        normal = "" if self.normal is None else f", normally {self.normal:.3g}"
        value = "not finite" if self.value is None else f"{self.value:.3g}"
        return (
            f"step {self.step}: {self.meaning} ({self.key} {value}{normal}; {self.statistic_name} "
            f"{self.statistic:.3g}, threshold {self.threshold:g})"
        )

    @property
    def is_absolute(self) -> bool:
        """Whether the finding needs no baseline."""
        return self.statistic_name == ABSOLUTE_STATISTIC

    @property
    def excess(self) -> float:
        """Length of the step as a multiple of the baseline; 1 where the finding is about something else."""
        if self.key not in SCALED or self.value is None or not self.normal:
            return 1.0
        return max(1.0, self.value / self.normal)

    def to_row(self) -> dict[str, Any]:
        """Convert the finding to a row of a JSONL file."""
        return asdict(self)


@dataclass(slots=True)
class Guard:
    """Rules with their detectors.

    **Limits** A run whose signals never change has no findings. Reading a run again from its log gives the findings it
    had (metrics are logged in full).
    """

    rules: Sequence[Rule] = field(default_factory=default_rules)
    alarmed: dict[str, int] = field(default_factory=dict)
    num_skipped: float = 0.0
    read_at: dict[str, Sequence[int]] = field(default_factory=dict)
    _detectors: dict[str, Detector] = field(init=False)

    def __post_init__(self) -> None:
        self._detectors = {rule.name: rule.make() for rule in self.rules}

    def read(self, step: int, signals: Mapping[str, float | None]) -> list[Finding]:
        """Judge one step; return the alarms that began with it, in the order of the rules.

        Args:
            signals: metrics by key; ``None`` is a value that was not finite when it was logged.
        """
        findings = list(self._broken(step, signals))
        held_down = (signals.get("guard/step_scale") or 1.0) < 1.0
        for rule in self.rules:
            value = signals.get(rule.key)
            if value is None or not math.isfinite(value):
                continue
            reading = self._detectors[rule.name].update(float(value), learns=not (held_down and rule.key in SCALED))
            onset = self._onset(rule.name, step, 0 if reading is None else reading.onset)
            if reading is not None and self._begins(rule.name, reading.alarm, step):
                findings.append(_finding(rule, step, value, reading, onset))
        return findings

    @property
    def mismatched(self) -> bool:
        """Whether a mismatch alarm is active; signals then measure a bug and not the policy."""
        return any(rule.name in self.alarmed for rule in self.rules if rule.name.startswith("mismatch"))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        detectors = {name: detector.state_dict() for name, detector in self._detectors.items()}
        return {"detectors": detectors, "alarmed": dict(self.alarmed), "num_skipped": self.num_skipped,
                "read_at": {name: list(steps) for name, steps in self.read_at.items()}}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name, detector in self._detectors.items():
            if name in state["detectors"]:  # a checkpoint of an earlier version lacks newer rules
                detector.load_state_dict(state["detectors"][name])
        self.alarmed, self.num_skipped = dict(state["alarmed"]), state["num_skipped"]
        self.read_at = {name: list(steps) for name, steps in state.get("read_at", {}).items()}

    def _onset(self, name: str, step: int, num_before: int) -> int:
        """Find the step whose value lies ``num_before`` values back: a panel is not measured at every step."""
        steps = (*self.read_at.get(name, ()), step)[-NUM_ONSETS:]
        self.read_at[name] = steps
        return steps[max(0, len(steps) - 1 - num_before)]

    def _begins(self, name: str, alarm: bool, step: int) -> bool:
        """Whether an alarm is new; an alarm that ended can be raised again."""
        if not alarm:
            self.alarmed.pop(name, None)
            return False
        is_new = name not in self.alarmed
        self.alarmed.setdefault(name, step)
        return is_new

    def _broken(self, step: int, signals: Mapping[str, float | None]) -> Iterable[Finding]:
        for key in MUST_BE_FINITE:
            value = signals.get(key, 0.0)
            bad = value is None or not math.isfinite(value)
            if self._begins(f"not-finite {key}", bad, step):
                yield not_finite(step, key, "the number is not finite")
        skipped = signals.get("optim/bad_steps") or 0.0
        if skipped > self.num_skipped:
            yield replace(
                not_finite(step, "optim/bad_steps", "an update was skipped: its loss or gradient was not finite"),
                rule="skipped-update",
                level="note",
                value=skipped,
            )
        self.num_skipped = skipped


def not_finite(step: int, key: str, meaning: str) -> Finding:
    """Build the finding that a metric is not finite; it asks for a rollback in every mode."""
    advice = "a lower optimizer.lr usually helps; the batch of this step is the first suspect"
    return Finding("not-finite", "broken", step, step, key, None, "finite", None, None, None, meaning, advice)


def _finding(rule: Rule, step: int, value: float, reading: Reading, onset: int) -> Finding:
    return Finding(
        rule.name,
        rule.level,
        step,
        onset,
        rule.key,
        float(value),
        reading.name,
        float(reading.statistic) if math.isfinite(reading.statistic) else None,
        reading.threshold,
        reading.normal,
        rule.meaning,
        rule.advice,
    )

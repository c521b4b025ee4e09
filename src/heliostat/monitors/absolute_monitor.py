"""Findings that need no baseline: conditions on an evaluation, a first step or two steps in a row.

    evaluated(signals)     the evaluation before training: a condition that holds for it is reported at once
    read(step, signals)    a training step: a condition is reported once it has held for its number of steps

Each condition is an entry in ``absolute_rules``, causes before consequences. A condition that holds hides the rules
that it explains. A finding of the evaluation that no first step confirms is withdrawn.

Left out: changes against the run's baseline (``rules``, ``guard``), and actions (``train.guard``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliostat.monitors.guard import ABSOLUTE_STATISTIC, Finding
from heliostat.monitors.rules import Level

RECIPE_NUMBERS = (
    *("rollout.prompts_per_step", "rollout.group_size", "rollout.max_new_tokens", "rollout.temperature"),
    "warm_start.num_steps",
)
ENVIRONMENT_NUMBERS = ("environment.max_turns", "environment.max_tokens_per_turn", "environment.max_tokens")
"""Settings that findings mention; those of an environment only where there is one, with ``NUM_TOOLS``."""
NUM_TOOLS = "environment.tools"
Signals = Mapping[str, float | None]
Settings = Mapping[str, float]

RECENT = 5
"""Number of earlier steps that are kept, and within which training confirms findings of the evaluation."""
FIRST_STEPS = 3
"""A condition of the first minute must have begun by this step."""
KEPT = (
    *("reward/mean", "reward/success", "reward/zero_signal", "policy/entropy", "policy/lambda_hat"),
    *("optim/update_ratio", "optim/bad_steps"),
)
"""Signals of earlier steps that conditions compare with."""


@dataclass(frozen=True, slots=True)
class View:
    """One step's signals, with those of the steps before and with facts about the run.

    Attributes:
        before: the last steps, oldest first, with the signals of ``KEPT``.
        level: share of right completions that the run had before it fell, where it has any; ``reward`` its mean reward.
        settings: numeric settings of the recipe by dotted name; empty for a log from elsewhere.
        failure: message of a verifier that failed.
    """

    signals: Signals
    before: Sequence[Signals] = ()
    level: float = math.nan
    reward: float = math.nan
    settings: Settings = field(default_factory=dict)
    failure: str = ""

    def __getitem__(self, key: str) -> float:
        """Return the signal, NaN where it is missing: every comparison with it is false."""
        return number(self.signals, key)

    @property
    def success(self) -> float:
        """Share of right completions; where only rewards are logged, a mean of 0 without any difference is none."""
        known = self["reward/success"]
        if not math.isnan(known):
            return known
        return 0.0 if self["reward/mean"] == 0 and self["reward/zero_signal"] == 1 else math.nan

    @property
    def failed(self) -> float:
        """Share of completions on which a verifier failed."""
        return self["reward/failures"] / self.num_completions if self.num_completions else math.nan

    @property
    def num_completions(self) -> float:
        """Completions of the step; NaN if their number is unknown."""
        logged = self["reward/completions"]
        if not math.isnan(logged):
            return logged
        return self.setting("rollout.prompts_per_step") * self.setting("rollout.group_size")

    @property
    def uniform(self) -> bool:
        """Whether the completions of every group earned the same."""
        return self["reward/zero_signal"] > 0.999

    @property
    def agreement(self) -> float:
        """Mean share of groups that earned the same, over the steps that are remembered and this one."""
        shares = [*self.earlier("reward/zero_signal"), self["reward/zero_signal"]]
        return sum(shares) / len(shares)

    @property
    def has_turns(self) -> bool:
        """Whether completions are trajectories of several turns."""
        return not (math.isnan(self["agent/turns"]) and math.isnan(self.setting("environment.max_turns")))

    def setting(self, name: str) -> float:
        """Return a numeric setting of the recipe, NaN where it is unknown."""
        return self.settings.get(name, math.nan)

    def earlier(self, key: str) -> list[float]:
        """List the signal in the steps before, where it was logged."""
        return [value for row in self.before if not math.isnan(value := number(row, key))]


@dataclass(frozen=True, slots=True)
class AbsoluteRule:
    """One condition.

    Attributes:
        name: its name in events.
        key: the signal that shows it best.
        level: the action it asks for.
        hold: steps in a row that it has to hold.
        holds: the condition.
        meaning: a sentence about the run.
        advice: the remedy, with the setting to change.
        hides: rules that are silent while this one holds, since it explains them.
        first_only: the condition must begin within the first ``FIRST_STEPS`` steps.
        evaluated: the condition is also checked on an evaluation.
        quiet: the condition is not reported; it only hides other rules.
    """

    name: str
    key: str
    level: Level
    hold: int
    holds: Callable[[View], bool]
    meaning: Callable[[View], str]
    advice: Callable[[View], str]
    hides: frozenset[str] = frozenset()
    first_only: bool = False
    evaluated: bool = False
    quiet: bool = False


@dataclass(slots=True)
class AbsoluteMonitor:
    """The conditions of a run, step by step.

    Attributes:
        settings: numeric settings of the recipe by dotted name.
        failure: message of the verifier that failed last.
        held: steps in a row that each condition has held.
        up: conditions that have been reported and still hold.
        unconfirmed: findings of the evaluation that no training step has confirmed so far.

    **Limits** A signal that is missing makes no condition true. The same signals give the same findings.
    """

    rules: Sequence[AbsoluteRule]
    settings: Settings = field(default_factory=dict)
    failure: str = ""
    seen: int = 0
    before: list[dict[str, float | None]] = field(default_factory=list)
    level: float | None = None
    reward: float | None = None
    held: dict[str, int] = field(default_factory=dict)
    up: list[str] = field(default_factory=list)
    unconfirmed: list[str] = field(default_factory=list)

    def evaluated(self, signals: Signals) -> list[Finding]:
        """Judge the evaluation before training."""
        view = View(signals, settings=self.settings, failure=self.failure)
        hidden: set[str] = set()
        found = []
        for rule in self.rules:
            if rule.evaluated and rule.name not in hidden and rule.holds(view):
                hidden |= rule.hides
                found.append(finding_of(rule, view, 0, 0))
        self.unconfirmed = [finding.rule for finding in found]
        self.up += self.unconfirmed
        return found

    def read(self, step: int, signals: Signals) -> list[Finding]:
        """Judge a training step; return conditions that have held for long enough, causes first."""
        self.seen += 1
        view = View(signals, tuple(self.before), _nan(self.level), _nan(self.reward), self.settings, self.failure)
        found = []
        for rule in self.rules:
            held = self.held.get(rule.name, 0)
            counts = rule.holds(view) and (held > 0 or not rule.first_only or self.seen <= FIRST_STEPS)
            self.held[rule.name] = held + 1 if counts else 0
            if not counts:
                self._down(rule)
            elif rule.name in self.up:
                self.unconfirmed = [name for name in self.unconfirmed if name != rule.name]
            elif self.held[rule.name] >= rule.hold and rule.name not in self._hidden_by_causes(rule):
                self.up.append(rule.name)
                if not rule.quiet:
                    found.append(finding_of(rule, view, step, step - rule.hold + 1))
        self._remember(view)
        return found

    @property
    def hidden(self) -> frozenset[str]:
        """Rules that are explained by conditions that hold."""
        return frozenset(name for rule in self.rules if self.held.get(rule.name) or rule.name in self.up
                         for name in rule.hides)  # fmt: skip

    def withdrawn(self) -> list[str]:
        """List findings of the evaluation that none of the first training steps confirmed; each is returned once."""
        if self.seen < FIRST_STEPS or not self.unconfirmed:
            return []
        gone, self.unconfirmed = self.unconfirmed, []
        self.up = [name for name in self.up if name not in gone]
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {
            "seen": self.seen,
            "before": [dict(row) for row in self.before],
            "level": self.level,
            "reward": self.reward,
            "held": dict(self.held),
            "up": list(self.up),
            "unconfirmed": list(self.unconfirmed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.seen, self.level, self.reward = int(state["seen"]), state["level"], state["reward"]
        self.before = [dict(row) for row in state["before"]]
        self.held, self.up, self.unconfirmed = dict(state["held"]), list(state["up"]), list(state["unconfirmed"])

    def _down(self, rule: AbsoluteRule) -> None:
        """Allow a condition that ended to be reported again, unless only the evaluation has shown it."""
        if rule.name in self.up and rule.name not in self.unconfirmed:
            self.up.remove(rule.name)

    def _hidden_by_causes(self, rule: AbsoluteRule) -> set[str]:
        """Collect the rules explained by conditions before this one that hold."""
        causes = self.rules[: list(self.rules).index(rule)]
        return {name for cause in causes if self.held.get(cause.name) or cause.name in self.up for name in cause.hides}

    def _remember(self, view: View) -> None:
        """Keep the step for the next ones; a fall does not become the level that it is compared with."""
        row = {key: view.signals[key] for key in KEPT if view.signals.get(key) is not None}
        self.before = [*self.before, row][-RECENT:]
        if not self.held.get("reward-falls-at-once") and not self.held.get("reward-vanishes"):
            self.level = _averaged(self.level, level_of(view))
            self.reward = _averaged(self.reward, view["reward/mean"])


def finding_of(rule: AbsoluteRule, view: View, step: int, onset: int) -> Finding:
    """Build the finding of a condition; it has a sentence and no statistic."""
    value = view[rule.key]
    return Finding(
        rule=rule.name,
        level=rule.level,
        step=step,
        onset=onset,
        key=rule.key,
        value=value if math.isfinite(value) else None,
        statistic_name=ABSOLUTE_STATISTIC,
        statistic=None,
        threshold=None,
        normal=None,
        meaning=rule.meaning(view),
        advice=rule.advice(view),
    )


def recipe_numbers(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Extract the settings that findings mention from a recipe's nested tables, as far as it has them.

    An environment's limits take the place of ``rollout.max_new_tokens``, which then limits nothing.
    """
    environment = recipe.get("environment")
    if not isinstance(environment, Mapping) or not (environment.get("name") or environment.get("tools")):
        return _numbers(recipe, RECIPE_NUMBERS)
    found = _numbers(recipe, (*RECIPE_NUMBERS, *ENVIRONMENT_NUMBERS))
    found.pop("rollout.max_new_tokens", None)
    return found | {NUM_TOOLS: float(len(environment.get("tools") or ()))}


def _numbers(recipe: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    found = {}
    for name in names:
        section, _, key = name.partition(".")
        table = recipe.get(section)
        value = table.get(key) if isinstance(table, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def standing(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the findings of absolute rules in a run's events, one per rule, without withdrawn ones."""
    return list(standing_by_rule(events).values())


def standing_by_rule(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the same findings by the names of their rules."""
    texts: dict[str, str] = {}
    for event in events:
        rule, text = str(event.get("rule")), event.get("text")
        if event.get("action") == "withdrawn":
            texts.pop(rule, None)
        elif event.get("statistic_name") == ABSOLUTE_STATISTIC and isinstance(text, str):
            texts.setdefault(rule, text)
    return texts


def level_of(view: View) -> float:
    """Return the level that falls are measured on: the share of right completions, or the mean reward without it."""
    success = view["reward/success"]
    return view["reward/mean"] if math.isnan(success) else success


def number(signals: Signals, key: str) -> float:
    """Return a signal as a float, NaN where it is missing."""
    value = signals.get(key)
    return math.nan if value is None else float(value)


def _averaged(level: float | None, value: float) -> float | None:
    """Update a slow moving average; the first value starts it."""
    if math.isnan(value):
        return level
    return value if level is None else level + (value - level) / RECENT


def _nan(value: float | None) -> float:
    return math.nan if value is None else value

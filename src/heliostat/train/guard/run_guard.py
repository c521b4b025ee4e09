"""The guard of a run: it judges every step, sets its actuator, requests rollbacks, and logs its reasons.

    first_look(signals)             judge the evaluation before training
    observe(step, signals)          judge a step, and return the guard's own metrics
    should_roll_back(step, error)   judge a step that raised an error
    pending_rollback                the finding that requests a rollback, until the run has rolled back

``events.jsonl`` has one line per finding or action, with the statistic that caused it and whether it was carried out.
``abandoned.jsonl`` has the metrics of steps that were rolled back. Both count in ``tick``, the number of steps run
including abandoned ones, which never decreases.

An error inside the guard never ends a run: the guard disables itself, reports the error, and the run continues.

Left out: the rules (``monitors.guard``), and restoring weights (``train.trainer``).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from heliostat.config import GuardSection
from heliostat.monitors.absolute_monitor import AbsoluteMonitor
from heliostat.monitors.absolute_rules import ABSOLUTE_RULES
from heliostat.monitors.controllers import CONTROLLERS, Controller
from heliostat.monitors.guard import Finding, Guard, not_finite
from heliostat.monitors.hacking import HackingTest
from heliostat.monitors.reference import Reference
from heliostat.monitors.rules import default_rules
from heliostat.rollout import NonFiniteLogits
from heliostat.tracking import read_metrics
from heliostat.train.guard.actuators import Actuator
from heliostat.train.run_folder.folder import RunFolder
from heliostat.train.update.safe_step import TrainingDiverged

NUMERIC_FAILURES = (TrainingDiverged, NonFiniteLogits)
"""Errors that mean non-finite values: the guard rolls back for them in every mode except ``off``."""
MARGIN = 5
"""A rollback goes to at least this many steps before the onset of its cause, if there is a checkpoint."""
STEP_CUT = 0.5
"""Factor of a rollback on the learning rate; less where its finding shows a step more than twice too long."""
RECOVERY_STEPS = 20
"""Steps without another rollback after which a reduced learning rate is doubled again."""
MISMATCH_CUT = 0.1
"""Factor on the learning rate, in mode ``act``, while the log-probabilities of sampler and trainer disagree."""


class GuardStopped(RuntimeError):
    """The guard ended a run that rollbacks could not save."""


@dataclass(slots=True)
class RunGuard:
    """The guard of one run.

    Attributes:
        note: shows a line to people.
        panel: measures the panel's metrics, where there is a panel.
        pending_rollback: the finding that requests a rollback, until the trainer has rolled back.
        skipped: steps that were rolled back so far; the run's position in its data is ``step + skipped``.
        lr_scale: factor of past rollbacks on the learning rate.
        num_quiet: steps since the last rollback, or since ``lr_scale`` last rose.
        rewards: mean rewards of the steps since the last panel; their mean is compared with the panel's.
        disabled: the error that disabled the guard; empty while it works.
        hacking: the test of a judge against the verifiers.
        absolute: the rules that need no baseline of the run; they report in every mode, ``off`` included.
    """

    section: GuardSection
    folder: RunFolder
    note: Callable[[str], None]
    writes: bool
    actuator: Actuator | None = None
    panel: Callable[[], Mapping[str, float]] | None = None
    pending_rollback: Finding | None = None
    skipped: int = 0
    num_rollbacks: int = 0
    lr_scale: float = 1.0
    num_quiet: int = 0
    rewards: list[float] = field(default_factory=list)
    disabled: str = ""
    hacking: HackingTest = field(default_factory=HackingTest)
    absolute: AbsoluteMonitor = field(default_factory=lambda: AbsoluteMonitor(ABSOLUTE_RULES))
    guard: Guard = field(init=False)
    controller: Controller = field(init=False)
    early_entropy: Reference = field(init=False)

    def __post_init__(self) -> None:
        start, size = self.section.baseline_start, self.section.baseline_steps
        self.guard = Guard(default_rules(start, size))
        self.controller = CONTROLLERS[self.section.controller]()
        self.early_entropy = Reference(size, skip=start)

    @property
    def acts(self) -> bool:
        """Whether findings lead to actions."""
        return self.section.mode == "act"

    @property
    def step_scale(self) -> float:
        """The factor on the next step's learning rate.

        **Limits** 1 in a run without rollbacks and mismatch alarms. Outside mode ``act`` only rollbacks for non-finite
        values reduce it.
        """
        return self.lr_scale * (MISMATCH_CUT if self.acts and not self.disabled and self.guard.mismatched else 1.0)

    def position(self, step: int) -> int:
        """Return the position of ``step`` in the data, where rolled-back steps count as well."""
        return step + self.skipped

    # -- one step ---------------------------------------------------------------------------------------------------

    def observe(self, step: int, signals: Mapping[str, float]) -> dict[str, float]:
        """Judge a step, and return the metrics of the guard and the panel."""
        if self.disabled:
            return {}
        try:
            self._report_absolute(step, signals)
            return {} if self.section.mode == "off" else self._act(step, signals)
        except NUMERIC_FAILURES:
            raise  # the policy is broken, not the guard
        except Exception as error:
            self._disable(step, error)
            return {}

    def first_look(self, signals: Mapping[str, float]) -> None:
        """Judge the evaluation before training, unless training has begun already."""
        if self.disabled or self.absolute.seen:
            return
        try:
            for finding in self.absolute.evaluated(signals):
                self._found_absolute(finding)
        except Exception as error:
            self._disable(0, error)

    def see_failures(self, failures: Iterable[str]) -> None:
        """Remember the message of a failed verifier for the finding about it."""
        self.absolute.failure = next(filter(None, failures), self.absolute.failure)

    def should_roll_back(self, step: int, error: Exception) -> bool:
        """Decide whether to roll back after a step that raised ``error``, and request the rollback."""
        wanted = isinstance(error, NUMERIC_FAILURES) or self.acts
        if (
            self.section.mode == "off"
            or self.disabled
            or not wanted
            or self.num_rollbacks >= self.section.max_rollbacks
        ):
            return False
        self._ask(not_finite(step, type(error).__name__, str(error)))
        return True

    def _act(self, step: int, signals: Mapping[str, float]) -> dict[str, float]:
        every, scale = self.section.panel_every, self.step_scale  # the scale that this step was taken with
        panel = {}
        if self.panel is not None and every:
            self.rewards.append(signals["reward/mean"])
            panel = dict(self.panel()) if step % every == 0 else {}
        if "panel/reward" in panel:
            panel["panel/gap"] = fmean(self.rewards) - panel["panel/reward"]
            self.rewards.clear()
        metrics = {"guard/step_scale": scale}
        statistic = self.hacking.update(signals)
        metrics |= {} if statistic is None else {"judge/hacking": statistic}
        for finding in self.guard.read(step, {**signals, **panel, **metrics}):
            if finding.rule in self.absolute.hidden:
                continue
            if finding.level in ("rollback", "broken"):
                self._ask(finding)
            else:
                action = "freeze controllers" if finding.level == "mismatch" else "note"
                self._event(step, action, True, finding.sentence(), finding.to_row())
        self._recover()
        metrics |= {"guard/alarms": float(len(self.guard.alarmed)), "guard/rollbacks": float(self.num_rollbacks)}
        return panel | metrics | self._control(step, signals)

    def _report_absolute(self, step: int, signals: Mapping[str, float]) -> None:
        """Report the findings of a step that need no baseline; damage requests a rollback, where the guard may act."""
        for finding in self.absolute.read(step, signals):
            self._found_absolute(finding)
        for rule in self.absolute.withdrawn():
            text = f"step {step}: the first steps do not confirm this finding of the evaluation ({rule})"
            self._event(step, "withdrawn", True, text, {"rule": rule})

    def _found_absolute(self, finding: Finding) -> None:
        """Report and log a finding; one of the evaluation is logged once, even if the run resumes before step 1."""
        asks = finding.level == "rollback" and self.section.mode != "off"
        text = f"{finding.sentence()}; {finding.advice}"
        if not finding.step and any(row.get("text") == text for row in read_metrics(self.folder.events)):
            self.note(f"guard: {text}")
            return
        self._event(finding.step, "rollback" if asks else "note", self.acts or not asks, text, finding.to_row())
        if asks and self.acts and self.pending_rollback is None:
            self.pending_rollback = finding

    def _recover(self) -> None:
        """Restore the learning rate that a rollback reduced, once the run has been quiet for ``RECOVERY_STEPS``."""
        if self.lr_scale < 1.0 and self.pending_rollback is None:
            self.num_quiet += 1
            if self.num_quiet >= RECOVERY_STEPS:
                self.lr_scale, self.num_quiet = min(1.0, self.lr_scale / STEP_CUT), 0

    def _ask(self, finding: Finding) -> None:
        """Request a rollback, or in shadow mode report that one would have been requested."""
        taken = self.acts or finding.level == "broken"
        self._event(finding.step, "rollback", taken, finding.sentence(), finding.to_row())
        if taken and self.pending_rollback is None:
            self.pending_rollback = finding

    def _control(self, step: int, signals: Mapping[str, float]) -> dict[str, float]:
        entropy = signals.get("policy/entropy")
        if entropy is None:
            return {}
        self.early_entropy.add(entropy)
        normal = self.early_entropy.centre()
        if normal is None or normal <= 0:
            return {}
        target = self.section.entropy_target * normal
        if self.actuator is None:
            return {"guard/entropy_target": target}
        frozen = self.guard.mismatched or "length" in self.guard.alarmed
        before = self.controller.output
        output = self.controller.update(entropy, target, frozen)
        setting = self.actuator.set(output) if self.acts else self.actuator.value
        if (before > 0) != (output > 0):
            text = f"step {step}: {self.actuator.name} {'engaged' if output > 0 else 'released'}"
            cause = {"key": "policy/entropy", "value": entropy, "statistic_name": "moving average",
                     "statistic": self.controller.average, "threshold": target, "normal": normal}  # fmt: skip
            self._event(step, "adjust", self.acts, f"{text} (entropy {entropy:.3g}, target {target:.3g})", cause)
        return {"guard/entropy_target": target, "guard/output": output, "guard/setting": setting}

    # -- rollbacks --------------------------------------------------------------------------------------------------

    def rollback_target(self, step: int, kept: Iterable[int]) -> int:
        """Choose the checkpoint to roll back to: the newest at least ``MARGIN`` before the onset, else the oldest.

        Raises:
            GuardStopped: no rollback or no checkpoint is left.
        """
        finding = self.pending_rollback
        assert finding is not None
        usable = sorted(checkpoint for checkpoint in kept if 0 <= checkpoint < step)
        if self.num_rollbacks >= self.section.max_rollbacks or not usable:
            why = "no checkpoint is left" if not usable else f"after {self.num_rollbacks} rollbacks"
            self._event(step, "stop", True, f"step {step}: stopped, {why}", finding.to_row())
            raise GuardStopped(
                f"the guard stopped the run {why}: {finding.sentence()}; {finding.advice} (heliostat diagnose "
                f"{self.folder.path} tells the story)"
            )
        before = [checkpoint for checkpoint in usable if checkpoint <= finding.onset - MARGIN]
        return before[-1] if before else usable[0]

    def record_rollback(self, step: int, to: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record that the run has rolled back from ``step`` to ``to``, where its judgement has been restored.

        Args:
            rows: metrics of the rolled-back steps.
        """
        pending, self.pending_rollback = self.pending_rollback, None
        assert pending is not None
        tick = step + self.skipped
        if self.writes:
            self.folder.append(self.folder.abandoned, [{"tick": tick, **row} for row in rows])
        self.num_rollbacks += 1
        self.skipped += step - to
        self.lr_scale *= min(STEP_CUT, 1.0 / pending.excess)
        self.num_quiet = 0
        text = (
            f"step {step}: back to the checkpoint of step {to}, other data, learning rate times {self.lr_scale:g} "
            f"(try {self.num_rollbacks} of {self.section.max_rollbacks})"
        )
        self._event(step, "went back", True, text, pending.to_row() | {"to": to, "lr_scale": self.lr_scale}, tick)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the guard's effects on the run, which a rollback keeps."""
        return {
            "tick": step + self.skipped,
            "skipped": self.skipped,
            "num_rollbacks": self.num_rollbacks,
            "lr_scale": self.lr_scale,
            "num_quiet": self.num_quiet,
            "disabled": self.disabled,
        }

    def judgement(self) -> dict[str, Any]:
        """Return the statistics of the run and the actuator's position, which a rollback restores."""
        return {
            "rewards": list(self.rewards),
            "guard": self.guard.state_dict(),
            "controller": self.controller.state_dict(),
            "early_entropy": self.early_entropy.state_dict(),
            "output": self.controller.output if self.acts else 0.0,
            "outright": self.absolute.state_dict(),
            "hacking": self.hacking.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the effects of a checkpoint, and drop later events."""
        self.skipped, self.num_rollbacks = state["skipped"], state["num_rollbacks"]
        self.lr_scale, self.num_quiet, self.disabled = state["lr_scale"], state["num_quiet"], state["disabled"]
        if self.writes:
            self.folder.rewind_events(state["tick"])

    def load_judgement(self, state: Mapping[str, Any]) -> None:
        """Restore the statistics that ``judgement`` returned."""
        self.guard.load_state_dict(state["guard"])
        self.controller.load_state_dict(state["controller"])
        self.early_entropy.load_state_dict(state["early_entropy"])
        self.rewards = list(state["rewards"])
        if "hacking" in state:
            self.hacking.load_state_dict(state["hacking"])
        if "outright" in state:  # a checkpoint of an earlier version has none
            self.absolute.load_state_dict(state["outright"])
        if self.actuator is not None:
            self.actuator.set(state["output"])

    def _event(
        self, step: int, action: str, taken: bool, text: str, cause: Mapping[str, Any], tick: int | None = None
    ) -> None:
        """Log an event, and report it."""
        if not self.writes:
            return
        tick = step + self.skipped if tick is None else tick
        said = text if taken else f"{text}; in mode act: {action}"
        row = {**cause, "tick": tick, "step": step, "action": action, "taken": taken, "text": said}
        self.folder.append(self.folder.events, [row])
        self.note(f"guard: {said}")

    def _disable(self, step: int, error: Exception) -> None:
        """Disable the guard for the rest of the run with a note, since its own mistakes must not end training."""
        self.disabled = f"{type(error).__name__}: {error}"
        self.pending_rollback = None
        self.note(
            f"guard: switched itself off at step {step} after an error of its own ({self.disabled}); the run goes on"
        )
        try:
            trace = traceback.format_exc()
            row = {"error": self.disabled, "trace": trace, "tick": step + self.skipped, "step": step,
                   "action": "switched off", "taken": True, "text": f"step {step}: the guard failed"}  # fmt: skip
            self.folder.append(self.folder.events, [row])
        except OSError:
            pass  # the note has been shown; a full disk ends the run at its next checkpoint

"""The guard as a callback of ``transformers.Trainer``, and so of every TRL trainer.

    trainer = GRPOTrainer(..., callbacks=[GuardCallback()])

It reads the trainer's log, under the trainer's own names, and writes ``events.jsonl`` and ``metrics.jsonl`` into
the output folder, where ``heliostat diagnose`` finds them. Its state is in the trainer's checkpoints.

Left out: rollback and actuators, which a trainer does not offer to a callback. Where the guard of a Heliostat run would
roll back, this one stops the training (mode ``act``) or reports that it would. In both modes, non-finite metrics stop
it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from heliostat.monitors.absolute_monitor import AbsoluteMonitor
from heliostat.monitors.absolute_rules import ABSOLUTE_RULES
from heliostat.monitors.foreign import TRL_METRICS
from heliostat.monitors.guard import Finding, Guard
from heliostat.monitors.rules import default_rules
from heliostat.printed import visible, visible_line
from heliostat.storage import append_rows, publish_file

logger = logging.getLogger(__name__)

METRIC_OF: Mapping[str, str] = TRL_METRICS
"""Our metric for each number that transformers or TRL logs; other numbers are not read."""


class GuardCallback(TrainerCallback, ExportableState):
    """The guard on the log of a training.

    Args:
        mode: ``shadow`` reports findings; ``act`` also stops a training that is being damaged.
        baseline_start: logged steps before the baseline is measured.
        baseline_steps: logged steps over which the baseline is measured.

    **Limits** A log is read once per ``logging_steps``: the guard counts logs, not steps. ``logging_nan_inf_filter``,
    which transformers has on by default, hides a loss that is not finite; the gradient norm still shows it. The state
    is restored where ``restore_callback_states_from_checkpoint`` is set.
    """

    def __init__(
        self, mode: Literal["shadow", "act"] = "shadow", baseline_start: int = 20, baseline_steps: int = 40
    ) -> None:
        if mode not in ("shadow", "act"):
            raise ValueError(f"the guard's mode is 'shadow' or 'act', got {mode!r}")
        self.mode = mode
        self.baseline = (baseline_start, baseline_steps)
        self.guard = Guard(default_rules(baseline_start, baseline_steps))
        self.absolute = AbsoluteMonitor(ABSOLUTE_RULES)
        self.disabled = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the lines written after the checkpoint that training continues from.

        **Limits** Of a training that begins anew, and of lines that are not of this form, nothing is removed: the files
        of an earlier one are kept under another name.
        """
        if not state.is_world_process_zero:
            return
        for name in ("events.jsonl", "metrics.jsonl"):
            path = Path(str(args.output_dir)) / name
            if path.exists() and state.global_step == 0:
                others = (path.with_name(f"{name}.before-{number}") for number in itertools.count(1))
                path.rename(next(other for other in others if not other.exists()))
            elif path.exists():
                lines = path.read_bytes().splitlines(keepends=True)
                publish_file(path, b"".join(line for line in lines if _step(line) <= state.global_step))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge one line of the trainer's log."""
        if not logs or self.disabled or not {"loss", "grad_norm"} & logs.keys():  # evaluations and the closing summary
            return
        try:
            self._judge(Path(str(args.output_dir)), state, control, logs)
        except Exception as error:
            self.disabled = visible_line(f"{type(error).__name__}: {error}")
            said = visible(traceback.format_exc())
            logger.error("guard: switched itself off after an error of its own; training goes on\n%s", said)

    def _judge(self, folder: Path, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any]) -> None:
        signals = {ours: _number(logs[theirs]) for theirs, ours in METRIC_OF.items() if theirs in logs}
        found = self.absolute.read(state.global_step, signals)
        hidden = self.absolute.hidden
        found += [finding for finding in self.guard.read(state.global_step, signals) if finding.rule not in hidden]
        stops = [f for f in found if f.level == "broken" or (f.level == "rollback" and self.mode == "act")]
        if stops:
            control.should_training_stop = True
        if not state.is_world_process_zero:
            return
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in signals.items()}
        _append(folder / "metrics.jsonl", {"step": state.global_step, **finite})
        for finding in found:
            row = _event(finding, taken=finding in stops or finding.level != "rollback")
            logger.warning("guard: %s", visible_line(row["text"]))
            _append(folder / "events.jsonl", row)

    def state(self) -> dict[str, Any]:
        """Return the state that the trainer's checkpoint keeps."""
        start, steps = self.baseline
        return {
            "args": {"mode": self.mode, "baseline_start": start, "baseline_steps": steps},
            "attributes": {"disabled": self.disabled, "judgement": self.judgement},
        }

    @property
    def judgement(self) -> dict[str, Any]:
        """The guard's state, as JSON values."""
        return self.guard.state_dict() | {"outright": self.absolute.state_dict()}

    @judgement.setter
    def judgement(self, state: Mapping[str, Any]) -> None:
        self.guard.load_state_dict(state)
        if "outright" in state:  # a checkpoint of an earlier version has none
            self.absolute.load_state_dict(state["outright"])


def _event(finding: Finding, taken: bool) -> dict[str, Any]:
    action = "stop" if finding.level in ("rollback", "broken") else "note"
    said = f"{finding.sentence()}; {finding.advice}" if finding.is_absolute else finding.sentence()
    text = said if taken else f"{said}; in mode act: stop"
    return {**finding.to_row(), "action": action, "taken": taken, "text": text}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    append_rows(path, [row])


def _step(line: bytes) -> float:
    """Return the step of a line of ours; for any other line, a step before every checkpoint."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1.0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

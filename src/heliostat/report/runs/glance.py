"""The state of a run from the ends of its files, in a millisecond whatever its length.

Left out: everything that needs whole files (``read``).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heliostat.report.runs.read import dig, finite, number
from heliostat.report.runs.writer import writer_of
from heliostat.statistics import Estimate
from heliostat.storage import read_last_rows

Status = Literal["starting", "running", "done", "interrupted", "failed", "ended by the guard", "broken"]
ENDINGS: dict[str, Status] = {"finished": "done", "interrupted": "interrupted", "failed": "failed"}
NUM_ROWS = 20
"""Steps that the time of a step is averaged over."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A run's state.

    Attributes:
        reason: why it ended early, or is broken, in its own words.
        recipe: as it stands in the folder; empty where it is missing or damaged.
        rows: the last rows of ``metrics.jsonl``, oldest first.
        summary: what the run wrote at its end; empty while it works.
    """

    folder: Path
    status: Status
    reason: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The last step that was logged; those of the warm start are 0 or less."""
        return int(_step(self.rows[-1])) if self.rows else 0

    @property
    def num_steps(self) -> int | None:
        """The planned steps; ``None`` where the recipe is unknown."""
        planned = number(self.recipe, "train", "num_steps")
        return None if planned is None else int(planned)

    @property
    def warm_start(self) -> tuple[int, int] | None:
        """Steps done and planned of a warm start that is not followed by training yet; ``None`` elsewhere."""
        planned = number(self.recipe, "warm_start", "num_steps")
        if not planned or self.step > 0 or not self.rows:
            return None
        return int(planned) + self.step, int(planned)

    @property
    def progress(self) -> str:
        """Steps done of those planned, in words."""
        if self.warm_start:
            return "warm start {} of {}".format(*self.warm_start)
        done = max(self.step, 0)
        return str(done) if self.num_steps is None else f"{done} of {self.num_steps}"

    @property
    def step_s(self) -> float | None:
        """Seconds of a training step, evaluations among them included; ``None`` before the second."""
        timed = [row for row in self.rows if _step(row) > 0 and finite(row.get("time/total")) is not None]
        if len(timed) < 2 or _step(timed[-1]) <= _step(timed[0]):
            return None
        passed = timed[-1]["time/total"] - timed[0]["time/total"]
        return float(passed / (_step(timed[-1]) - _step(timed[0]))) if passed > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last training step; ``None`` where no step's time is known."""
        if self.status != "running" or self.step_s is None or self.num_steps is None:
            return None
        return max(0, self.num_steps - self.step) * self.step_s

    def held_out(self, phase: str) -> Estimate | None:
        """Return held-out pass@1 ``before`` or ``after`` training, as the summary states it."""
        value = number(self.summary, phase, "pass@1")
        if value is None:
            return None
        interval = dig(self.summary, phase, "ci95")
        low, high = (finite(end) for end in interval) if _is_pair(interval) else (None, None)
        return Estimate(value, value if low is None else low, value if high is None else high)


def glance(folder: Path) -> Glance:
    """Look at a run folder.

    Raises:
        OSError: the folder is missing, or may not be read.
    """
    names = {path.name for path in folder.iterdir()}
    recipe = _document(folder / "recipe.toml", tomllib.loads)
    rows = [row for row in read_last_rows(folder / "metrics.jsonl", NUM_ROWS) if finite(row.get("step")) is not None]
    if writer_of(folder) is not None:
        return Glance(folder, "running" if rows else "starting", "", recipe or {}, rows)
    if recipe is None:
        missing = "damaged" if "recipe.toml" in names else "absent"
        return Glance(folder, "broken", f"recipe.toml is {missing}", {}, rows)
    summary = _document(folder / "summary.json", json.loads) or {}
    status = ENDINGS.get(str(summary.get("status")), "interrupted")
    if status == "failed" and _stopped(folder):
        status = "ended by the guard"
    reason = summary.get("reason") or ("" if summary else "it ended without a summary")
    return Glance(folder, status, str(reason), recipe, rows, summary)


def _stopped(folder: Path) -> bool:
    return any(row.get("action") == "stop" for row in read_last_rows(folder / "events.jsonl", 1))


def _document(path: Path, parse: Any) -> dict[str, Any] | None:
    """Read a file of one table or object; ``None`` where it is missing or damaged."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _step(row: Mapping[str, Any]) -> float:
    return finite(row.get("step")) or 0.0


def _is_pair(interval: object) -> bool:
    return isinstance(interval, list) and len(interval) == 2

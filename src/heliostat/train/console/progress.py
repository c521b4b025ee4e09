"""Progress of a run for people: one live line on a terminal, plain lines everywhere else.

Left out: machine-readable output (``tracking``, ``summary.json``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from heliostat.printed import visible
from heliostat.terminal import SafeConsole

SHOWN = {
    "loss/sft": "loss {:.3f}",
    "reward/mean": "reward {:.3f}",
    "reward/success": "solved {:.1%}",
    "eval/pass@1": "held-out {:.1%}",
    "policy/entropy": "entropy {:.3f}",
    "policy/lambda_hat": "λ̂ {:+.4f}",
    "speed/step_tokens": "{:,.0f} tok/s",
}
"""Metrics on the progress line, in order, and their formats."""


def brief(values: Mapping[str, float]) -> str:
    """Join the shown metrics that are present into one short text."""
    shown = (form.format(values[key]) for key, form in SHOWN.items() if key in values)
    return "  ".join(text.replace("-0.0000", "+0.0000") for text in shown)


def clock(seconds: float) -> str:
    """Format a duration like ``1:05`` or ``2:03:20``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Display:
    """Progress display of the phases of one run.

    Args:
        line_every_s: without a terminal, at most one line in this many seconds (the last step always prints).
    """

    def __init__(self, console: Console | None = None, line_every_s: float = 5.0) -> None:
        self.console = console or SafeConsole(highlight=False)
        self.line_every_s = line_every_s
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._done = 0
        self._phase = ""
        self._began = self._printed = time.monotonic()
        self._held_out: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_phase()

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(visible(text), soft_wrap=True, markup=False)

    def begin_phase(self, name: str, total: int, done: int = 0) -> None:
        """Start counting a phase's steps; ``done`` of them ran before a restart."""
        self.end_phase()
        self._phase, self._total, self._done = name, total, done
        self._began = time.monotonic()
        self._printed = 0.0
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("{task.fields[phase]}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}  {task.fields[numbers]}"),
                console=self.console,
            )
            self._task = self._live.add_task(name, total=total, completed=done, phase=name, eta="", numbers="")
            self._live.start()

    def step(self, index: int, values: Mapping[str, float]) -> None:
        """Report that ``index`` steps of the phase are done."""
        self._held_out |= {key: value for key, value in values.items() if key == "eval/pass@1"}
        elapsed = time.monotonic() - self._began
        left = (self._total - index) * elapsed / max(1, index - self._done)
        numbers = brief({**self._held_out, **values})
        if self._live and self._task is not None:
            self._live.update(self._task, completed=index, eta=f"ETA {clock(left)}", numbers=numbers)
            return
        if index == self._total or time.monotonic() - self._printed >= self.line_every_s:
            self._printed = time.monotonic()
            self.note(f"{self._phase} {index}/{self._total}  ETA {clock(left)}  {numbers}")

    def end_phase(self) -> None:
        """Freeze the live line."""
        if self._live:
            self._live.stop()
            self._live = self._task = None

    def table(self, table: Table) -> None:
        """Print a small table that stays; a live line goes on below it."""
        self.console.print(table)

"""Progress of a run for people: one live line on a terminal, plain lines everywhere else.

Left out: machine-readable output (``tracking``, ``summary.json``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

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


GAP = "  "


def shown_metrics(values: Mapping[str, float]) -> list[str]:
    """Format the shown metrics that are present."""
    shown = (form.format(values[key]) for key, form in SHOWN.items() if key in values)
    return [text.replace("-0.0000", "+0.0000") for text in shown]


def clock(seconds: float) -> str:
    """Format a duration like ``1:05`` or ``2:03:20``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@dataclass(frozen=True, slots=True)
class LeadingParts:
    """As many of the first parts as fit on one line: a number is shown in full or not at all."""

    parts: Sequence[str]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(options.max_width, cell_len(GAP.join(self.parts))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        num = len(self.parts)
        while cell_len(GAP.join(self.parts[:num])) > options.max_width:
            num -= 1
        yield Text(GAP.join(self.parts[:num]), no_wrap=True)


class RestColumn(ProgressColumn):
    """Elapsed time, time left and metrics: the column that gives way first on a narrow terminal, then the bar."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))  # rich takes room from what may wrap; this shortens instead

    def render(self, task: Task) -> LeadingParts:
        elapsed = task.finished_time if task.finished else task.elapsed
        return LeadingParts([clock(elapsed or 0), *task.fields["numbers"]])


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
                RestColumn(),
                console=self.console,
            )
            self._task = self._live.add_task(name, total=total, completed=done, phase=name, numbers=[])
            self._live.start()

    def step(self, index: int, values: Mapping[str, float]) -> None:
        """Report that ``index`` steps of the phase are done."""
        self._held_out |= {key: value for key, value in values.items() if key == "eval/pass@1"}
        elapsed = time.monotonic() - self._began
        left = (self._total - index) * elapsed / max(1, index - self._done)
        numbers = [f"ETA {clock(left)}", *shown_metrics({**self._held_out, **values})]
        if self._live and self._task is not None:
            self._live.update(self._task, completed=index, numbers=numbers)
            return
        if index == self._total or time.monotonic() - self._printed >= self.line_every_s:
            self._printed = time.monotonic()
            self.note(GAP.join([f"{self._phase} {index}/{self._total}", *numbers]))

    def end_phase(self) -> None:
        """Freeze the live line."""
        if self._live:
            self._live.stop()
            self._live = self._task = None

    def table(self, table: Table) -> None:
        """Print a small table that stays; a live line goes on below it."""
        self.console.print(table)

"""Results of a run: its outcome, and the exception of a failed run for programs that start runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heliostat.cards import Card, table
from heliostat.train.evaluation.evaluate import Evaluation

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(Card):
    """The outcome of a run.

    Attributes:
        status: ``finished``, ``interrupted`` or ``failed``; ``reason`` gives the cause if not finished.
        before, after: held-out results, if the run got that far; ``after`` also of weights at which the guard ended it.
        findings: the guard's absolute findings that stand at the end, a sentence each.
        is_main_process: whether this process is the one of its run that prints.
    """

    folder: Path
    status: str
    reason: str
    before: Evaluation | None
    after: Evaluation | None
    is_main_process: bool = True
    findings: tuple[str, ...] = ()

    def card_line(self) -> str:
        sides = [one.described if one else "unknown" for one in (self.before, self.after)]
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.status}{reason}; held-out pass@1 {' -> '.join(sides)}; folder {self.folder}"

    def _repr_html_(self) -> str:
        rows = [
            ("status", "; ".join(filter(None, (self.status, self.reason)))),
            ("held-out pass@1 before", self.before.described if self.before else "unknown"),
            ("held-out pass@1 after", self.after.described if self.after else "unknown"),
            *(("finding", finding) for finding in self.findings),
            ("report", str(self.folder / "report.html")),
        ]
        return table(("run", str(self.folder)), rows)

    @property
    def exit_code(self) -> int:
        """The exit code of the process: 0 finished, 130 interrupted, 1 failed."""
        return EXIT_CODES[self.status]


class RunFailed(RuntimeError):
    """A run or an evaluation failed before its result was complete.

    Attributes:
        reason: the cause, in a sentence.
        folder: the run folder, to inspect and to continue; ``None`` for an evaluation.
        result: the results up to the failure; ``None`` for an evaluation.
        exit_code: the exit code of a process that was started for it.
    """

    exit_code = 1

    def __init__(self, reason: str, folder: Path | None = None, result: RunResult | None = None) -> None:
        super().__init__(reason if folder is None else f"{reason} (run folder: {folder})")
        self.reason = reason
        self.folder = folder
        self.result = result

    def __reduce__(self) -> tuple[type[RunFailed], tuple[str, Path | None, RunResult | None]]:
        return type(self), (self.reason, self.folder, self.result)

"""Results of a run: how it ended, and the exception that a failed run raises for programs that start runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heliostat.train.evaluation.evaluate import Evaluation

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: ``finished``, ``interrupted`` or ``failed``; ``reason`` says why if not finished.
        before, after: held-out results, where the run got that far.
        findings: what the run's first minute and its falls say outright, a sentence each.
        is_main_process: whether this process is the one of its run that talks to people.
    """

    folder: Path
    status: str
    reason: str
    before: Evaluation | None
    after: Evaluation | None
    is_main_process: bool = True
    findings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 0 finished, 130 interrupted, 1 failed."""
        return EXIT_CODES[self.status]


class RunFailed(RuntimeError):
    """A run or an evaluation ended before it had its result.

    Attributes:
        reason: why, in a sentence.
        folder: what the run left behind, to look at and to continue; ``None`` for an evaluation.
        result: the results that it got as far as; ``None`` for an evaluation.
        exit_code: what a process should exit with that was started for it.
    """

    exit_code = 1

    def __init__(self, reason: str, folder: Path | None = None, result: RunResult | None = None) -> None:
        super().__init__(reason if folder is None else f"{reason} (run folder: {folder})")
        self.reason = reason
        self.folder = folder
        self.result = result

    def __reduce__(self) -> tuple[type[RunFailed], tuple[str, Path | None, RunResult | None]]:
        return type(self), (self.reason, self.folder, self.result)

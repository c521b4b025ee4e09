"""The exception of a run that failed, for programs that start runs.

Left out: how a run ends (``run.RunResult``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliostat.train.run import RunResult


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

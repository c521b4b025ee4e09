"""A judge of the user's own, which scores all completions of a step in one call.

    class Judge:
        def __init__(self, **settings): ...           judge.settings of the recipe
        def score(self, problems, completions): ...   a number for each, or None where there is no score

It may also have ``close()``, and a text ``fingerprint`` that changes with its scores. Every rank opens one of its own.
Of an episode, the completion is its transcript, a text with ``parts`` (``heliostat.tasks.transcripts``).

Left out: judges that compare the completions of a group, and finding the module (``heliostat.named_imports``).
"""

from __future__ import annotations

import inspect
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from heliostat.config import ConfigError
from heliostat.tasks.judging import JudgeCounts, JudgeFailed, Mark
from heliostat.train.judges.reply_cache import digest
from heliostat.types import Problem


class Scorer(Protocol):
    """The judge that a user writes."""

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Sequence[SupportsFloat | None]:
        """Return one finite number per completion, in order; ``None``: it has no score.

        Args:
            problems: the problem of each completion, with its ``question``, ``answer`` and ``columns``. In an
                environment, the question ends with the first observation.
            completions: texts; of episodes, each is a ``Transcript`` of all turns, replayed ones included.
        """
        ...


@dataclass(slots=True)
class OwnJudge:
    """A user's judge as a run calls it.

    Attributes:
        title: the name that the recipe gives it.

    **Limits** An exception, a wrong number of scores or a score that is no finite number leaves completions unscored:
    it is never a score of 0.
    """

    scorer: Scorer
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    _counts: JudgeCounts = field(default_factory=JudgeCounts)

    @property
    def name(self) -> str:
        return f"judge '{self.title}'"

    @property
    def fingerprint(self) -> str:
        """The digest of its name, its settings and its own fingerprint, if it has one."""
        settings = json.dumps(self.settings, sort_keys=True, default=str)
        return digest([self.title, settings, str(getattr(self.scorer, "fingerprint", ""))])

    def begin(self, problem: Problem, texts: Sequence[str]) -> list[tuple[Problem, str]]:
        """Keep completions until all groups of the step are there."""
        return [(problem, text) for text in texts]

    def wait(self, ticket: object, timeout_s: float) -> bool:
        """Return true: texts are scored in ``finish``."""
        return True

    def finish(self, tickets: Sequence[list[tuple[Problem, str]]]) -> list[tuple[Mark, ...]]:
        """Score all completions in one call."""
        rows = [row for ticket in tickets for row in ticket]
        marks = self._marks(rows) if rows else []
        unscored = sum(mark.score is None for mark in marks)
        self._counts = JudgeCounts(self._counts.texts + len(marks), self._counts.unscored + unscored)
        taken = iter(marks)
        return [tuple(next(taken) for _ in ticket) for ticket in tickets]

    def take_counts(self) -> JudgeCounts:
        """Return the work since the last call."""
        counts, self._counts = self._counts, JudgeCounts()
        return counts

    def close(self) -> None:
        """Close the user's judge, if it can be closed."""
        close = getattr(self.scorer, "close", None)
        if callable(close):
            close()

    def _marks(self, rows: Sequence[tuple[Problem, str]]) -> list[Mark]:
        problems, texts = [problem for problem, _ in rows], [text for _, text in rows]
        try:
            given: list[Any] = list(self.scorer.score(problems, texts))
        except JudgeFailed:
            raise
        except (Exception, SystemExit) as error:  # the user's code, which must not end the program
            return [Mark(None, f"{self.name} raises {type(error).__name__}: {error}{_line_of(error)}")] * len(rows)
        if len(given) != len(rows):
            return [Mark(None, f"{self.name} returned {len(given)} scores for {len(rows)} completions")] * len(rows)
        return [self._mark(score) for score in given]

    def _mark(self, score: Any) -> Mark:
        if score is None:
            return Mark(None, f"{self.name} gave no score")
        try:
            number = math.nan if isinstance(score, str | bytes) else float(score)
        except (TypeError, ValueError):
            number = math.nan
        return Mark(number) if math.isfinite(number) else Mark(None, f"{self.name} gave {score!r:.60}")


def check_scorer(found: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a class that is no judge, or does not take the recipe's settings.

    Raises:
        ConfigError: it is one, in a sentence that says how a judge is written.
    """
    short = name.rpartition(":")[2]
    if not isinstance(found, type) or not callable(getattr(found, "score", None)):
        raise ConfigError(f"judge '{name}' is no judge: it is a class with a method score(problems, completions)")
    try:
        inspect.signature(found).bind(**settings)
    except TypeError as error:
        raise ConfigError(
            f"judge '{name}' is opened as {short}(**judge.settings), and does not take that: {error}"
        ) from error


def open_own(found: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> OwnJudge:
    """Open a user's judge.

    Raises:
        ConfigError: it is no judge, or cannot be opened.
    """
    check_scorer(found, name, settings)
    try:
        return OwnJudge(found(**settings), name, settings)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"judge '{name}' cannot be opened: {type(error).__name__}: {error}{_line_of(error)}"
        ) from error


def _line_of(error: BaseException) -> str:
    """Name the file and line at which the user's code failed."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"

"""A judge: a model that scores completions, and the way its scores become rewards.

    judge.begin(problem, texts)  ->  ticket     one group; work that can run in parallel with sampling starts here
    judge.finish(tickets)        ->  marks      a score for every text, or the reason why there is none

A text that a judge cannot score is *unscored*: it has no reward, leaves its group, and is never taken for a 0. An
episode of several turns is one text too (``transcripts``), judged once it has ended.

Left out: the judges themselves (``heliostat.train.judges``), and when a group is judged (``verifier_pool.pool``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from heliostat.cards import Card
from heliostat.tasks.task import ENVIRONMENT, ended_in_silence
from heliostat.types import Group, Problem, Verdict

JUDGE = "judge"
"""The name of a judge's score among the scores of a verdict."""


class JudgeFailed(RuntimeError):
    """A judge cannot score enough completions, or may not be asked any more."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The score of one text; ``None`` with the reason where there is none."""

    score: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class JudgeCounts(Card):
    """The work of a judge.

    Attributes:
        texts: texts to score.
        unscored: those without a score.
        calls, cached, failed: requests that were sent, answered from the cache, and left without a usable answer.
        tokens: tokens of prompts and replies, as the server counts them.
        cost: of the whole run so far, in the currency of the prices.
        flops: of a reward model.
    """

    texts: int = 0
    unscored: int = 0
    calls: int = 0
    cached: int = 0
    failed: int = 0
    tokens: int = 0
    cost: float = 0.0
    flops: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, float]) -> JudgeCounts:
        """Restore counts that were added up or stored by name; those that are missing are 0."""
        reals = ("cost", "flops")
        whole = {one.name: int(values.get(one.name, 0)) for one in fields(cls) if one.name not in reals}
        return replace(cls(**whole), cost=float(values.get("cost", 0)), flops=float(values.get("flops", 0)))


class Judge(Protocol):
    """A model that scores completions.

    Attributes:
        name: its name in messages.
        fingerprint: what its scores depend on; a run is not continued with another one.

    **Limits** A mark depends only on the problem, the text and, for a judge that compares, the other texts of the
    group. Texts keep their order.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def begin(self, problem: Problem, texts: Sequence[str]) -> Any:
        """Start to judge the completions of one problem; return a ticket."""

    def wait(self, ticket: Any, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for the replies to a ticket's questions; return whether all are there."""

    def finish(self, tickets: Sequence[Any]) -> list[tuple[Mark, ...]]:
        """Return the marks of every ticket's texts, in order.

        Raises:
            JudgeFailed: the judge may not be asked any more.
        """

    def take_counts(self) -> JudgeCounts:
        """Return the work since the last call."""

    def close(self) -> None:
        """Stop all work, from any thread."""


ReadGroup = Callable[[Group], tuple[Problem, Sequence[str]]]
"""Reads from a group the problem and the texts that a judge is asked about."""


def read_completions(group: Group) -> tuple[Problem, list[str]]:
    """Return the group's problem, and the texts of its completions."""
    return group.prompt.problem, [completion.text for completion in group.completions]


@dataclass(frozen=True, slots=True)
class Judging:
    """A judge, and the use of its scores.

    Attributes:
        weight: factor of the score in the reward.
        alone: whether the score is the whole reward; otherwise it is added to that of the verifiers or environment.
        success_at: score from which a completion counts as solved, in tasks without verifiers; of an episode, if the
            environment ended it without any reward or success.
        max_unscored: share of unscored completions above which ``judged`` raises.
        read: reads the question and the texts of a group; for episodes, ``train.judges.episodes``.
    """

    judge: Judge
    weight: float = 1.0
    alone: bool = True
    success_at: float = 0.5
    max_unscored: float = 0.5
    read: ReadGroup = read_completions

    def begin(self, group: Group) -> Any:
        """Start to judge a group."""
        return self.judge.begin(*self.read(group))

    def judged(self, groups: Sequence[Group], tickets: Sequence[Any]) -> list[Group]:
        """Return groups with the verdicts of verifiers, or of the environment, and judge together.

        Args:
            groups: verified ones; without verifiers and an environment, they have no verdicts yet.

        Raises:
            JudgeFailed: too many completions are unscored.
        """
        marked = self.judge.finish(tickets)
        self._refuse_many([mark for marks in marked for mark in marks])
        return [self._with_marks(group, marks) for group, marks in zip(groups, marked, strict=True)]

    def verdict(self, mark: Mark, verifiers: Verdict | None) -> Verdict:
        """Combine a mark ``s`` with the verdict of verifiers or an environment, whose reward is ``r``.

        The reward is ``w s``, or ``r + w s`` unless the judge is alone. Success is what the verdict says; without one,
        it is ``s >= success_at``. An episode has one reward for all its turns: ``r`` is the sum of the environment's,
        and ``w s`` is added to it once, however many turns there are.
        """
        if mark.score is None:
            known = verifiers or Verdict(math.nan, False)
            return replace(known, reward=math.nan, failure=mark.failure, is_scored=False)
        if verifiers is None:
            return Verdict(self.weight * mark.score, mark.score >= self.success_at, {JUDGE: mark.score})
        reward = self.weight * mark.score + (0.0 if self.alone else verifiers.reward)
        return replace(verifiers, reward=reward, scores={**verifiers.scores, JUDGE: mark.score})

    def take_counts(self, add: Callable[[dict[str, Any]], Mapping[str, float]]) -> JudgeCounts:
        """Return the work of all ranks since the last call.

        Args:
            add: adds up a table of numbers over ranks.
        """
        return JudgeCounts.of(add(asdict(self.judge.take_counts())))

    def _with_marks(self, group: Group, marks: Sequence[Mark]) -> Group:
        return replace(group, verdicts=tuple(map(self.verdict, marks, _measured(group))))

    def _refuse_many(self, marks: Sequence[Mark]) -> None:
        unscored = [mark for mark in marks if mark.score is None]
        if len(unscored) > self.max_unscored * len(marks):
            raise JudgeFailed(
                f"{self.judge.name} scored only {len(marks) - len(unscored)} of {len(marks)} completions, and "
                f"judge.max_unscored = {self.max_unscored:g}; the last reason: {unscored[-1].failure}. Mend the judge, "
                "then continue the run"
            )


def _measured(group: Group) -> list[Verdict | None]:
    """Return the verdicts that measure success; ``None`` where neither verifiers nor an environment have said it."""
    if not group.verdicts:
        return [None] * len(group.completions)
    return [
        None if verdict.scores.keys() == {ENVIRONMENT} and ended_in_silence(one, group.prompt.prefix_turns) else verdict
        for one, verdict in zip(group.completions, group.verdicts, strict=True)
    ]

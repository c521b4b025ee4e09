"""Judge right answers, and explain the refused ones.

Left out: worthless answers (``probes``), and conclusions about the task (``audit``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.tasks.answers import find_answer
from heliostat.tasks.reward_audit.budget import JudgingBudget
from heliostat.tasks.task import Task
from heliostat.tasks.verifiers.builtin import Function, named
from heliostat.types import Problem, Verdict

Say = Callable[[Problem, str], str]
"""What verifiers are given when a model means to answer a problem with a text."""


def as_written(problem: Problem, text: str) -> str:
    """Return the text unchanged."""
    return text


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """A right answer with its verdict.

    Attributes:
        text: the text that was judged.
        bare: whether the worked solution was refused, and this is the verdict on the answer alone.
    """

    problem: Problem
    text: str
    verdict: Verdict
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A right answer that earned nothing.

    Attributes:
        read: the part that the verifier read; ``None`` if the answer marker was missing.
        why: how the verifier failed, or the scores that it gave.
        failed: whether it failed.
    """

    problem: Problem
    answer: str
    read: str | None
    why: str
    failed: bool = False

    def format(self) -> str:
        """Format the problem, the answer, and the verifiers' results on one line."""
        seen = "nothing, because the answer marker is missing" if self.read is None else _short(self.read)
        place = f" ({self.problem.place})" if self.problem.place else ""
        return (
            f"problem {_short(self.problem.question)}{place}: of the answer {_short(self.answer)} the verifier reads "
            f"{seen}; {self.why}"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        problem = {"problem_id": self.problem.problem_id, "place": self.problem.place}
        return problem | {"question": self.problem.question, "answer": self.answer, "read": self.read, "why": self.why}


def oracle_sample(problems: Sequence[Problem], num: int, seed: int) -> list[Problem]:
    """Return the problems with a right answer, in order; ``num`` of them, drawn by the seed, if there are more."""
    known = [problem for problem in problems if _texts(problem, "")]
    if len(known) <= num:
        return known
    return [known[index] for index in sorted(random.Random(seed).sample(range(len(known)), num))]


def judge_oracles(task: Task, problems: Sequence[Problem], budget: JudgingBudget, say: Say) -> list[JudgedAnswer]:
    """Judge each problem's worked solution and, if it is refused, the answer alone; stops at the time budget."""
    texts = [_texts(problem, task.answer_after) for problem in problems]
    asked = [(problem, say(problem, several[0])) for problem, several in zip(problems, texts, strict=True)]
    verdicts = budget.judge(asked)  # shorter if time is up
    judged = [JudgedAnswer(*one, verdict) for one, verdict in zip(asked, verdicts, strict=False)]
    again = [index for index, one in enumerate(judged) if len(texts[index]) > 1 and not accepts(task, one.verdict)]
    second = [(problems[index], say(problems[index], texts[index][1])) for index in again]
    for index, one, verdict in zip(again, second, budget.judge(second), strict=False):
        if accepts(task, verdict):
            judged[index] = JudgedAnswer(*one, verdict, bare=True)
    return judged


def accepts(task: Task, verdict: Verdict) -> bool:
    """Return whether a right answer got the score it should.

    **Limits**: without ``shaped`` that is a success. A shaped reward counts where every verifier of ours, which knows
    the right answer, gives full marks; a function may reward anything, and must only not fail.
    """
    if verdict.success:
        return True
    if verdict.failure or not task.shaped:
        return False
    ours = [one.name for one in task.verifiers if one.weight > 0 and not isinstance(one.verifier, Function)]
    marks = [verdict.scores[name] for name in ours if name in verdict.scores]
    return all(mark == 1.0 for mark in marks)


def knows_answers(task: Task) -> bool:
    """Return whether a right answer must get full marks: by a built-in verifier, or a function that names a column.

    **Limits**: a function that takes the columns as ``**kwargs`` alone may look at them or not; nothing is owed there.
    """
    weighted = [one.verifier for one in task.verifiers if one.weight > 0]
    columns = {name for problem in task.train[:1] + task.heldout[:1] for name in problem.columns}
    return any(not isinstance(one, Function) or not columns.isdisjoint(named(one.resolved())) for one in weighted)


def refusals(task: Task, judged: Sequence[JudgedAnswer]) -> tuple[Refusal, ...]:
    """Return the right answers that did not get the score they should."""
    return tuple(_refusal(task, one) for one in judged if not accepts(task, one.verdict))


def _refusal(task: Task, judged: JudgedAnswer) -> Refusal:
    verdict = judged.verdict
    blamed = next(
        (one for one in task.verifiers if one.weight > 0 and verdict.scores.get(one.name) != 1.0), task.verifiers[0]
    )
    whole = blamed.sees == "completion"
    read = judged.text.strip() if whole else find_answer(judged.text, task.answer_after)
    scores = ", ".join(f"'{name}' gives {score:g}" for name, score in verdict.scores.items())
    answer = judged.problem.answer if judged.problem.answer is not None else str(judged.problem.solution)
    why = verdict.failure or scores or "no score"
    return Refusal(judged.problem, answer, read, why, failed=bool(verdict.failure))


def _texts(problem: Problem, answer_after: str) -> list[str]:
    """Return the worked solution and the answer after its marker, as far as the problem has them."""
    answer = None if problem.answer is None else answer_after + problem.answer
    return list(dict.fromkeys(text for text in (problem.solution, answer) if text is not None))


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 3] + "...")

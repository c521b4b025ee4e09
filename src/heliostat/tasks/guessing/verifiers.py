r"""Choose a verifier by trying each on the answers of a task: right ones must be paid, wrong ones must not.

Wrong texts for a problem are the answers of other problems and the empty text. Where several verifiers do equally well,
the kind of the answers decides: ``numeric`` for numbers, ``math`` for LaTeX, ``exact`` for labels.

Left out: tricks that a policy might find (``reward_audit``).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from heliostat.tasks.settings import build_verifiers
from heliostat.tasks.task import Task
from heliostat.tasks.verifier_pool.pool import VerifierPool
from heliostat.tasks.verifiers.numerals import parse_number
from heliostat.types import Problem

Table = dict[str, Any]

FORMS = {
    "with a full stop": "{}.",
    "in a sentence": "The answer is {}.",
    "in a box": r"\boxed{{{}}}",
}
"""Further ways to write a right answer, tried on a few problems to describe a verifier."""

_NUM_PROBLEMS = 200
_NUM_FORMS = 20  # problems on which every form is tried
_NUM_OTHERS = 2  # answers of other problems that are tried on each
_FORMULA = re.compile(
    r"\\[A-Za-z]+|\$.+\$|[\w)}]\s*\^|\d\s*[-+*/]\s*[\d(a-z]|[a-z)]\s*[+*/]\s*\d|\b[a-z]\s*[-+*/]\s*[a-z]\b|\b\d+[xyzn]\b|[√π∞]"
)
_DATE = re.compile(r"\d+[-/:.]\d+[-/:.]\d+")
_AS_GOOD = 0.05  # trials whose merits differ by less are decided by the kind of the answers
_LABEL_WORDS = 4


class AnswerKind(StrEnum):
    """Kinds of answers, by the verifier that suits them."""

    NUMBERS = "numbers"
    MATHEMATICS = "mathematics"
    LABELS = "labels"
    FREE_TEXT = "free text"  # for which no built-in verifier is made


PREFERRED: dict[AnswerKind, tuple[str, ...]] = {
    AnswerKind.NUMBERS: ("numeric", "math", "exact"),
    AnswerKind.MATHEMATICS: ("math", "numeric", "exact"),
    AnswerKind.LABELS: ("exact", "numeric", "math"),
    AnswerKind.FREE_TEXT: ("exact", "numeric", "math"),
}


@dataclass(frozen=True, slots=True)
class VerifierTrial:
    """The results of one verifier on the answers of a task.

    Attributes:
        table: the verifier's entry in ``task.verifiers``.
        num_right: right answers that were tried, as they stand in the data.
        num_right_paid: how many of them succeeded.
        num_wrong: wrong texts that were tried.
        num_wrong_paid: how many of them succeeded.
        forms: names of the further forms of right answers that always succeed.
        refused: the first right answer that did not succeed, with its place; empty: none.
        paid: the first wrong text that succeeded, with the answer that it was paid for; empty: none.
    """

    table: Table
    num_right: int
    num_right_paid: int
    num_wrong: int
    num_wrong_paid: int
    forms: tuple[str, ...] = ()
    refused: str = ""
    paid: str = ""

    @property
    def name(self) -> str:
        """The verifier's name with its own settings."""
        own = [f"{key} = {str(value).lower()}" for key, value in self.table.items() if key != "name"]
        return " with ".join([str(self.table["name"]), *own])

    @property
    def merit(self) -> float:
        """Share of right answers paid, minus share of wrong texts paid."""
        return self.num_right_paid / max(1, self.num_right) - self.num_wrong_paid / max(1, self.num_wrong)

    @property
    def evidence(self) -> str:
        """The counts as a phrase."""
        return (
            f"pays {self.num_right_paid} of {self.num_right} right answers, "
            f"{self.num_wrong_paid} of {self.num_wrong} wrong ones"
        )


def has_math() -> bool:
    """Return whether the package of the verifier ``math`` is installed."""
    return importlib.util.find_spec("math_verify") is not None


def candidates(answers: Sequence[str]) -> list[Table]:
    """Return the verifiers to try on these answers."""
    folded = {answer.casefold() for answer in answers}
    # Where upper and lower case tell answers apart, both must count.
    has_case = any(answer != answer.casefold() or answer != answer.upper() for answer in answers)
    exact = {"ignore_case": True} if has_case and len(folded) == len(set(answers)) else {}
    tables: list[Table] = [{"name": "numeric"}, {"name": "exact", **exact}]
    return [*tables, {"name": "math"}] if has_math() else tables


def kind_of(answers: Sequence[str]) -> AnswerKind:
    """Return the kind of most of these answers."""
    num = len(answers)
    numbers = sum(parse_number(answer) is not None for answer in answers)
    formulas = sum(_is_formula(answer) for answer in answers)
    boxed = sum(r"\boxed" in answer for answer in answers)
    words = statistics.median(len(answer.split()) for answer in answers)
    if numbers == num and not any("\\" in answer for answer in answers):
        return AnswerKind.NUMBERS
    if boxed > num / 2 or (words <= 2 * _LABEL_WORDS and formulas and numbers + formulas > num / 2):
        return AnswerKind.MATHEMATICS
    if numbers > num / 2:
        return AnswerKind.NUMBERS
    if words > _LABEL_WORDS and len(set(answers)) > num / 2:
        return AnswerKind.FREE_TEXT
    return AnswerKind.LABELS


def _is_formula(answer: str) -> bool:
    if parse_number(answer) is not None:
        return "\\" in answer
    return bool(_FORMULA.search(answer)) and not _DATE.search(answer)


def try_verifiers(task: Task, tables: Sequence[Table], seed: int = 0) -> list[VerifierTrial]:
    """Try verifiers on up to 200 answers of a task, in worker processes with the task's limits.

    Args:
        task: its own verifiers do not matter.
        tables: entries of ``task.verifiers``.

    Returns:
        One trial for each table, in order.
    """
    known = [problem for problem in (*task.train, *task.heldout) if problem.answer is not None]
    rng = random.Random(seed)
    problems = known if len(known) <= _NUM_PROBLEMS else rng.sample(known, _NUM_PROBLEMS)
    others = [_others(problem, problems, rng) for problem in problems]
    tasks = [
        dataclasses.replace(task, name=str(number), verifiers=build_verifiers([table]))
        for number, table in enumerate(tables)
    ]
    with VerifierPool(tasks) as pool:
        pending = [
            [
                pool.judge(
                    dataclasses.replace(problem, task=one.name), _texts(task, problem, wrong, number), stops=False
                )
                for number, (problem, wrong) in enumerate(zip(problems, others, strict=True))
            ]
            for one in tasks
        ]
        paid = [[[verdict.success for verdict in future.result()] for future in futures] for futures in pending]
    return [_trial(table, problems, others, one) for table, one in zip(tables, paid, strict=True)]


def choose(trials: Sequence[VerifierTrial], kind: AnswerKind) -> VerifierTrial:
    """Return the trial of most merit; of those within 0.05 of it, the one that suits the kind of the answers."""
    order, most = PREFERRED[kind], max(trial.merit for trial in trials)
    good = [trial for trial in trials if trial.merit > most - _AS_GOOD]
    return min(good, key=lambda trial: order.index(trial.table["name"]))


def _others(problem: Problem, problems: Sequence[Problem], rng: random.Random) -> list[str]:
    """Return the empty text and answers of other problems that are wrong for this one."""
    right = [str(problem.answer), *problem.also_right]
    answers = [str(other.answer) for other in rng.sample(problems, min(len(problems), 4 * _NUM_OTHERS))]
    wrong = [answer for answer in dict.fromkeys(answers) if not any(_same(answer, one) for one in right)]
    return ["", *wrong[:_NUM_OTHERS]]


def _same(text: str, other: str) -> bool:
    number = parse_number(text)
    return text.strip().casefold() == other.strip().casefold() or (number is not None and number == parse_number(other))


def _texts(task: Task, problem: Problem, wrong: Sequence[str], number: int) -> list[str]:
    """Return the answer, the wrong texts, and on the first problems the forms, as completions."""
    answer = str(problem.answer)
    forms = [form.format(answer) for form in FORMS.values()] if number < _NUM_FORMS else []
    return [task.answer_after + text for text in (answer, *wrong, *forms)]


def _trial(
    table: Table, problems: Sequence[Problem], others: Sequence[Sequence[str]], paid: Sequence[Sequence[bool]]
) -> VerifierTrial:
    right = [one[0] for one in paid]
    wrong = [
        (problem, text, success)
        for problem, texts, one in zip(problems, others, paid, strict=True)
        for text, success in zip(texts, one[1 : 1 + len(texts)], strict=True)
    ]
    in_forms = [one[1 + len(texts) :] for texts, one in zip(others, paid, strict=True)][:_NUM_FORMS]
    forms = [name for number, name in enumerate(FORMS) if all(one[number] for one in in_forms)]
    refused = next((problem for problem, success in zip(problems, right, strict=True) if not success), None)
    first = next(((problem, text) for problem, text, success in wrong if success), None)
    return VerifierTrial(
        table,
        num_right=len(right),
        num_right_paid=sum(right),
        num_wrong=len(wrong),
        num_wrong_paid=sum(success for _, _, success in wrong),
        forms=tuple(forms),
        refused="" if refused is None else f"{_short(refused.answer)} ({refused.place})",
        paid="" if first is None else f"{_short(first[1])} for {_short(first[0].answer)}",
    )


def _short(text: str | None, most: int = 40) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= most else line[: most - 3] + "...")

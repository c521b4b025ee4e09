"""Checks that every verifier must pass, shipped or your own: ``heliostat check my_module:my_reward``.

Texts are judged as in a run, in a worker process under limits of time and memory, so that a verifier that hangs or ends
its process is found too. A check raises ``Nonconforming`` with a sentence about the difference that training would see.

Left out: whether the reward can be had for nothing (``heliostat tasks audit``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliostat.conformance import Nonconforming, run_checks
from heliostat.tasks.task import FULL_MARKS_WITHIN, Task, WeightedVerifier
from heliostat.tasks.verifier_pool.pool import VerifierError, VerifierPool
from heliostat.tasks.verifiers.builtin import Function, Verifier, named
from heliostat.types import Problem, Verdict

NAME = "trial"

ORDINARY = ("4", "5", "The answer is 4.", "2 + 2 = 4, so 4", "four", "I do not know.", "-4.0", "$\\frac{8}{2}$")
"""Texts as models write them, for the question 2 + 2."""

ODD = (
    *("", " ", "\n\n\n", "\x00", "\ufeff4", "\uff14", "\u0664", "e\u0301", "\U0001f469\u200d\U0001f467", "\u202e4"),
    *("nan", "inf", "1e999999", "1" * 5000),
    *("{" * 200, "\\boxed{", "</answer>", "<answer>4</answer>" * 50, "(" * 300 + ")" * 300, "__import__('os')", "4/0"),
)
"""Texts that are empty, of other scripts, broken, or too large a number."""

LONG = tuple(text * 20_000 for text in ("4", "a ", "9+", "4, ", "\n", "(", "\\frac{"))
"""Texts of 20,000 characters and more, of one repeated piece."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A problem, and open worker processes that judge its answers by one verifier."""

    problem: Problem
    pool: VerifierPool

    def judge(self, texts: Sequence[str]) -> tuple[Verdict, ...]:
        """Return a verdict for each text."""
        return self.pool.judge(self.problem, texts, stops=False).result()

    def scores(self, texts: Sequence[str]) -> list[float | None]:
        """Return the score of each text; ``None``: the verifier does not apply or failed."""
        return [verdict.scores.get(NAME) for verdict in self.judge(texts)]


Check = Callable[[Trial], None]


def ordinary_texts_are_scored(trial: Trial) -> None:
    """Check that texts as models write them get a finite number each, without an exception."""
    _refuse_failures(trial, ORDINARY, "let it return one finite number per completion")


def full_marks_are_one(trial: Trial) -> None:
    """Check that no text scores above 1, which is full marks."""
    for text, score in zip(ORDINARY, trial.scores(ORDINARY), strict=True):
        if score is not None and score > 1 + FULL_MARKS_WITHIN:
            raise Nonconforming(
                f"the text {text!r} scores {score:g}, but 1 is full marks and only a score of 1 is a success; divide "
                "by the largest score, and weight it in the recipe"
            )


def the_same_text_scores_the_same(trial: Trial) -> None:
    """Check that a text's score depends on neither earlier texts, their order, nor chance."""
    first = trial.scores(ORDINARY)
    for again in (trial.scores(ORDINARY), trial.scores(ORDINARY[::-1])[::-1]):
        for text, one, other in zip(ORDINARY, first, again, strict=True):
            if one != other:
                raise Nonconforming(
                    f"the text {text!r} scores {one} and then {other}; keep no state between calls, and draw no random "
                    "numbers"
                )


def odd_texts_are_scored(trial: Trial) -> None:
    """Check that empty, broken and foreign texts are scored without an exception."""
    _refuse_failures(trial, ODD, "give such a text a score, like 0")


def long_texts_are_scored_in_time(trial: Trial) -> None:
    """Check that texts of 20,000 characters and more are scored within the limits of time and memory."""
    _refuse_failures(trial, LONG, "read only the end of a long text, or a bounded part of it")


CHECKS: tuple[Check, ...] = (
    ordinary_texts_are_scored,
    full_marks_are_one,
    the_same_text_scores_the_same,
    odd_texts_are_scored,
    long_texts_are_scored_in_time,
)
"""Every check, in an order in which the first failure is the likely cause of others."""


def trial_problem(verifier: Verifier) -> Problem:
    """Return the question 2 + 2, with a column of the value "4" for every parameter that a function requires."""
    columns = {"answer": "4", "question": "2 + 2 ="}
    if isinstance(verifier, Function):
        required = (name for name, one in named(verifier.resolved()).items() if one.default is one.empty)
        columns |= {name: "4" for name in required if name not in ("prompts", "completions", *columns)}
    return Problem(NAME, NAME, "2 + 2 =", columns, "4")


def failures(verifier: Verifier, problem: Problem | None = None, timeout_s: float = 5.0) -> dict[str, str]:
    """Run every check; return a sentence by check, empty where it passed.

    Args:
        problem: a problem of task ``trial`` with the columns that the verifier needs; default: ``trial_problem``.
        timeout_s: time limit of one verdict in seconds.
    """
    problem = problem or trial_problem(verifier)
    weighted = WeightedVerifier(NAME, verifier, sees="completion")
    task = Task(name=NAME, train=(problem,), heldout=(), verifiers=(weighted,), timeout_s=timeout_s)
    with VerifierPool([task]) as pool:
        try:
            pool.judge(problem, ORDINARY[:1], stops=False).result()
        except VerifierError as error:
            return dict.fromkeys((check.__name__ for check in CHECKS), f"no worker process can load it: {error}")
        return run_checks(CHECKS, Trial(problem, pool))


def _refuse_failures(trial: Trial, texts: Sequence[str], way_out: str) -> None:
    for text in texts:
        (verdict,) = trial.judge([text])
        if verdict.failure:
            shown = repr(text) if len(text) < 40 else f"{text[:20]!r}… ({len(text)} characters)"
            raise Nonconforming(f"the text {shown}: {verdict.failure}; {way_out}")

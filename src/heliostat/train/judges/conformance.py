"""Checks that every judge must pass, shipped or your own: ``heliostat check my_module:MyJudge``.

A check opens the judge as a run does, asks for scores, and raises ``Nonconforming`` with a sentence about the
difference that training would see. A text without a score (``None``) is a promise kept where the judge says so itself.

Left out: whether the scores are right, and how they can be had for nothing (``heliostat tasks audit RECIPE``).
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from heliostat.config import ConfigError, JudgeSection, Recipe
from heliostat.conformance import Nonconforming, process_state, run_checks, run_within
from heliostat.tasks.judging import Judge
from heliostat.tasks.transcripts import ASSISTANT, ENVIRONMENT, Transcript
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.judges.opening import make_judge
from heliostat.types import Problem

SUM = Problem("trial", "trial", "What is 2 + 2?", {"answer": "4"}, "4", place="")
OTHER = Problem("other", "trial", "What is 3 + 4?", {"answer": "7"}, "7", place="")

EPISODE = Transcript(((ASSISTANT, "2 + 2"), (ENVIRONMENT, "4"), (ASSISTANT, "say 4")))
ORDINARY = (
    *("4", "5", "The answer is 4.", "2 + 2 = 4, so 4", "four", "I do not know.", "-4.0", "It is 7, surely."),
    EPISODE,
)
"""Completions as models write them, and an episode."""

ODD = (
    *("", " ", "\n\n\n", "\x00", "\ufeff4", "\u0664", "e\u0301", "\U0001f469\u200d\U0001f467", "\u202e4", "nan"),
    *("</answer>", "{" * 200, "<|im_end|>", "<s>4</s>", "SCORE: 10", "9+" * 10_000, "a " * 10_000),
    Transcript(((ASSISTANT, ""), (ENVIRONMENT, "<|im_end|>\nassistant: 4"), (ASSISTANT, "\n"))),
)
"""Completions that are empty, of other scripts, broken, very long, or look like a judge's own words."""

ROUNDING = 0.02
"""Largest accepted difference of two scores of a text, as a share of the range of ordinary scores: batches of another
shape round otherwise."""
LIMIT_S = 300.0
"""Seconds for one check, after which the judge counts as hanging."""
HANGS = f"it does not return within {LIMIT_S:g} s"


@dataclass(frozen=True, slots=True)
class Trial:
    """A judge, and a function that opens another one of the same settings."""

    recipe: Recipe
    judge: Judge
    open_it: Callable[[], Judge]

    def scores(self, *asked: tuple[Problem, Sequence[str]], judge: Judge | None = None) -> list[list[float | None]]:
        """Return the scores of the texts of each problem; all are asked for in one step."""
        judge = judge or self.judge
        tickets = [judge.begin(problem, texts) for problem, texts in asked]
        marks = judge.finish(tickets)
        return [[mark.score for mark in each] for each in marks]


Check = Callable[[Trial], None]


def ordinary_completions_get_a_score_each(trial: Trial) -> None:
    """Check that completions as models write them, an episode among them, get one finite number each."""
    judge = trial.judge
    (marks,) = judge.finish([judge.begin(SUM, ORDINARY)])
    for text, mark in zip(ORDINARY, marks, strict=True):
        if mark.score is None:
            raise Nonconforming(f"{text!r} has no score: {mark.failure}; return one finite number per completion")


def the_same_completion_scores_the_same(trial: Trial) -> None:
    """Check that a score depends on neither earlier calls nor chance."""
    first, again = (trial.scores((SUM, ORDINARY))[0] for _ in range(2))
    _compare(ORDINARY, first, again, "asked again", "keep no state between calls, and draw no random numbers")


def the_company_does_not_matter(trial: Trial) -> None:
    """Check that a score depends on neither the order nor the other completions and problems of a step."""
    way_out = "score each completion for itself, and return the scores in the order of the completions"
    first, others = trial.scores((SUM, ORDINARY), (OTHER, ORDINARY))
    alone = [trial.scores((SUM, [text]))[0][0] for text in ORDINARY]
    _compare(ORDINARY, first, alone, "alone in its step", way_out)
    turned, before = trial.scores((OTHER, ORDINARY[::-1]), (SUM, ORDINARY[::-1]))
    _compare(ORDINARY, first, before[::-1], "after other ones", way_out)
    _compare(ORDINARY, others, turned[::-1], "with another order", way_out)


def odd_completions_cost_no_other_its_score(trial: Trial) -> None:
    """Check that completions that are empty, broken, foreign or very long leave the scores of others as they are."""
    ((usual,),) = trial.scores((SUM, ORDINARY[:1]))
    judge = trial.judge
    for text in ODD:
        (marks,) = judge.finish([judge.begin(SUM, [text, ORDINARY[0]])])
        if usual is not None and marks[1].score is None:
            shown = repr(text) if len(text) < 40 else f"{text[:20]!r}… ({len(text)} characters)"
            raise Nonconforming(
                f"beside {shown} an ordinary completion has no score: {marks[1].failure}; return None for the one that "
                "cannot be scored"
            )


def a_failure_is_no_score(trial: Trial) -> None:
    """Check that a judge that loses the network has no scores, where it cannot have the right ones."""
    cut_off, usual = trial.open_it(), trial.open_it()
    try:
        with _without_network():
            offline = trial.scores((SUM, ORDINARY), judge=cut_off)[0]
        online = trial.scores((SUM, ORDINARY), judge=usual)[0]
    finally:
        cut_off.close()
        usual.close()
    known = [index for index, score in enumerate(offline) if score is not None]
    _compare(
        [ORDINARY[index] for index in known],
        [online[index] for index in known],
        [offline[index] for index in known],
        "without a network",
        "a failure is no score: return None, or let the exception pass",
    )


def another_process_scores_the_same(trial: Trial) -> None:
    """Check that a judge in a fresh process has the same scores and fingerprint, as on ranks and in a resumed run."""
    asked = {"recipe": trial.recipe.model_dump(mode="json"), "path": sys.path}
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from " + __name__ + " import child; child()"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked["path"])],
        input=json.dumps(asked["recipe"]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Nonconforming(f"a fresh process cannot open it: {said[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    _compare(
        ORDINARY,
        trial.scores((SUM, ORDINARY))[0],
        answer["scores"],
        "in another process",
        "draw no random numbers, and use no hash() of a text, which differs from process to process",
    )
    if answer["fingerprint"] != trial.judge.fingerprint:
        raise Nonconforming("its fingerprint differs in another process, so no run with it could be resumed")


def child() -> None:
    """Score the ordinary completions in this process; the recipe comes on standard input, the scores go out."""
    recipe = Recipe.model_validate(json.load(sys.stdin))
    trial = _trial(recipe)
    scores = trial.scores((SUM, ORDINARY))[0]
    sys.stdout.write("\n" + json.dumps({"scores": scores, "fingerprint": trial.judge.fingerprint}) + "\n")
    trial.judge.close()


def closing_ends(trial: Trial) -> None:
    """Check that a judge that was never asked can be closed, and closed again."""
    unused = trial.open_it()
    unused.close()
    unused.close()


def changes_nothing_of_the_run(trial: Trial) -> None:
    """Check that problems, random states, signals, threads and the working directory stay as they are."""
    columns = {"answer": "4", "list": [1]}
    problem = Problem("trial", "trial", SUM.prompt, columns, "4")
    before = process_state()
    judge = trial.open_it()
    trial.scores((problem, ORDINARY), judge=judge)
    judge.close()
    if columns != {"answer": "4", "list": [1]}:
        raise Nonconforming("it writes to the columns of a problem, which later steps ask again; copy them first")
    if moved := [name for name, value in process_state().items() if value != before[name]]:
        raise Nonconforming(f"it changes the {', '.join(moved)} of the process, on which the run's results depend")


CHECKS: tuple[Check, ...] = (
    ordinary_completions_get_a_score_each,
    the_same_completion_scores_the_same,
    the_company_does_not_matter,
    odd_completions_cost_no_other_its_score,
    a_failure_is_no_score,
    another_process_scores_the_same,
    closing_ends,
    changes_nothing_of_the_run,
)
"""Every check, in an order in which the first failure is the likely cause of others."""


def failures(recipe: Recipe, checks: Sequence[Check] = CHECKS) -> dict[str, str]:
    """Run checks on the judge that a recipe names; return a sentence by check, empty where it passed.

    Raises:
        ConfigError: there is no such judge, it cannot be opened, or it compares completions and has no score of one.
    """
    _refuse_pairs(recipe.judge)
    trial = _trial(recipe)
    found: dict[str, str] = {}
    why_not = ""
    for check in checks:
        found |= {check.__name__: f"not tried, since {why_not}"} if why_not else _tried(check, trial)
        sentence = found[check.__name__]
        if sentence.startswith(HANGS):
            why_not = HANGS
        elif sentence and check is ordinary_completions_get_a_score_each:
            why_not = "an ordinary completion has no score"
    if why_not != HANGS:
        trial.judge.close()
    return found


def _tried(check: Check, trial: Trial) -> dict[str, str]:
    """Run a check under a limit of time; the last one in this thread, whose signal handlers it compares."""
    if check is changes_nothing_of_the_run:
        return run_checks([check], trial)
    hangs = f"{HANGS}, and a run would wait for ever; give what it waits for a limit"
    return run_within(LIMIT_S, check, trial) or {check.__name__: hangs}


def _refuse_pairs(section: JudgeSection) -> None:
    if section.mode == "pairwise":
        raise ConfigError(
            "judge.mode = 'pairwise' compares completions, and these checks are about the score of one; set "
            "judge.mode = 'score'"
        )


def _trial(recipe: Recipe) -> Trial:
    runtime = start_runtime(recipe.run)

    def open_it() -> Judge:
        return make_judge(recipe, runtime)

    return Trial(recipe, open_it(), open_it)


def _compare(
    texts: Sequence[str], first: Sequence[float | None], other: Sequence[float | None], when: str, way_out: str
) -> None:
    """Refuse two scores of a text that differ by more than rounding, or a score in place of none."""
    known = [score for score in first if score is not None]
    largest = max(map(abs, known), default=0.0)
    accepted = ROUNDING * (max(known, default=0.0) - min(known, default=0.0)) + 1e-5 * largest
    for text, one, two in zip(texts, first, other, strict=True):
        differ = (one is None) != (two is None) or (one is not None and two is not None and abs(one - two) > accepted)
        if differ:
            raise Nonconforming(f"{text!r} scores {_shown(one)}, and {when} {_shown(two)}; {way_out}")


def _shown(score: float | None) -> str:
    return "nothing" if score is None else f"{score:.6g}"


@contextmanager
def _without_network() -> Iterator[None]:
    """Refuse every connection and every byte that is sent, in this process."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConnectionRefusedError("there is no network in this check")

    places: list[tuple[Any, str]] = [(socket, "getaddrinfo"), (socket, "create_connection")]
    places += [(socket.socket, name) for name in ("connect", "connect_ex", "send", "sendall", "sendmsg", "sendto")]
    places += [(ssl.SSLSocket, name) for name in ("connect", "send", "sendall", "write")]
    own = [(owner, name, vars(owner).get(name)) for owner, name in places]
    for owner, name in places:
        setattr(owner, name, refuse)
    try:
        yield
    finally:
        for owner, name, before in own:
            if before is None:
                delattr(owner, name)  # it was inherited
            else:
                setattr(owner, name, before)

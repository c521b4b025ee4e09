"""A judge of the user's own, and the promises of judges: each of a row of broken ones is told by its promise."""

import itertools
import os
import random
import socket
import threading

import numpy as np
import pytest
import torch

from heliostat.config import ConfigError, build_recipe
from heliostat.tasks.judging import JudgeFailed
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.judges import conformance
from heliostat.train.judges.conformance import CHECKS, failures
from heliostat.train.judges.own import OwnJudge
from heliostat.types import Problem
from tests.support.own_parts import Length
from tests.support.reward_model import save_reward_model

SUM = Problem("1", "sums", "3 + 4 =", answer="7")


def recipe_of(judge, **settings):
    return build_recipe({"judge.name": f"{__name__}:{judge.__name__}"}, {"judge.settings": settings})


def marks(score, texts=("a", "bb")):
    judge = OwnJudge(type("Judge", (), {"score": staticmethod(score)})(), "mine:Judge")
    (found,) = judge.finish([judge.begin(SUM, texts)])
    return found, judge.take_counts()


def test_all_completions_of_a_step_are_scored_in_one_call_and_come_back_by_group():
    asked = []

    class Judge:
        def score(self, problems, completions):
            asked.append([problem.problem_id for problem in problems])
            return np.array([float(len(text)) for text in completions])

    judge = OwnJudge(Judge(), "mine:Judge")
    other = Problem("2", "sums", "1 + 1 =")
    found = judge.finish([judge.begin(SUM, ["a", "bbb"]), judge.begin(other, ["cc"])])
    assert [[mark.score for mark in each] for each in found] == [[1.0, 3.0], [2.0]]
    assert asked == [["1", "1", "2"]]
    assert (judge.take_counts().texts, judge.take_counts().texts) == (3, 0)
    assert judge.finish([]) == []
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (lambda problems, texts: [1.0], "returned 1 scores for 2 completions"),
        (lambda problems, texts: [float("nan"), float("inf")], "gave nan"),
        (lambda problems, texts: ["1.0", {}], "gave '1.0'"),
        (lambda problems, texts: [None, None], "gave no score"),
        (lambda problems, texts: None, "raises TypeError"),
        (lambda problems, texts: 1 / 0, "raises ZeroDivisionError: division by zero (test_own.py, line"),
    ],
)
def test_what_is_no_score_leaves_a_completion_unscored_and_is_never_0(score, reason):
    found, counts = marks(score)
    assert {mark.score for mark in found} == {None}
    assert reason in found[0].failure
    assert (counts.texts, counts.unscored) == (2, 2)


def test_one_completion_may_have_no_score_and_a_judge_may_stop_the_run():
    found, counts = marks(lambda problems, texts: [None, torch.tensor(2.0)])
    assert [mark.score for mark in found] == [None, 2.0]
    assert counts.unscored == 1

    def stop(problems, texts):
        raise JudgeFailed("the quota is used up")

    with pytest.raises(JudgeFailed, match="quota"):
        marks(stop)


class Works(Length):
    """Like ``Length``, with odd texts left unscored."""

    def score(self, problems, completions):
        scores = super().score(problems, completions)
        return [None if "\x00" in text else score for text, score in zip(completions, scores, strict=True)]


class Silent(Works):
    def score(self, problems, completions):
        return super().score(problems, completions)[1:]


class Draws(Works):
    counter = itertools.count()

    def score(self, problems, completions):
        return [score + 100 * next(self.counter) for score in super().score(problems, completions)]


class Ranks(Works):
    def score(self, problems, completions):
        order = sorted(completions)
        return [float(order.index(text)) for text in completions]


class Stumbles(Works):
    def score(self, problems, completions):
        if "" in completions:
            raise ValueError("an empty completion")
        return super().score(problems, completions)


class Dials(Works):
    """Asks a service, and takes its silence for a 0."""

    def score(self, problems, completions):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            try:
                socket.create_connection(server.getsockname()).close()
            except OSError:
                return [0.0] * len(completions)
        return super().score(problems, completions)


class Hashes(Works):
    def score(self, problems, completions):
        return [float(os.getpid() + len(text)) for text in completions]


class ClosesOnce(Works):
    closed = 0

    def close(self):
        self.closed += 1
        if self.closed > 1:
            raise RuntimeError("closed already")


class Shuffles(Works):
    def score(self, problems, completions):
        random.random()
        return super().score(problems, completions)


class Remembers(Works):
    def score(self, problems, completions):
        for problem in problems:
            if "list" in problem.columns:
                problem.columns["list"].append(2)
        return super().score(problems, completions)


BROKEN = {
    "ordinary_completions_get_a_score_each": (Silent, "returned 8 scores for 9 completions"),
    "the_same_completion_scores_the_same": (Draws, "asked again"),
    "the_company_does_not_matter": (Ranks, "alone in its step"),
    "odd_completions_cost_no_other_its_score": (Stumbles, "beside '' an ordinary completion has no score"),
    "a_failure_is_no_score": (Dials, "without a network 0; a failure is no score"),
    "another_process_scores_the_same": (Hashes, "in another process"),
    "closing_ends": (ClosesOnce, "closed already"),
    "changes_nothing_of_the_run": (Shuffles, "changes the random state"),
}
ONE_PROCESS = [check for check in CHECKS if check is not conformance.another_process_scores_the_same]


FRESH = "another_process_scores_the_same"


@pytest.mark.parametrize(
    "promise", [pytest.param(name, marks=pytest.mark.slow) if name == FRESH else name for name in BROKEN]
)
def test_each_broken_promise_is_found(promise):
    judge, sentence = BROKEN[promise]
    checks = CHECKS if promise == FRESH else ONE_PROCESS
    found = {name: said for name, said in failures(recipe_of(judge), checks).items() if said}
    assert sentence in found[promise]
    assert next(iter(found)) == promise, "the first one says what is wrong"
    if promise == "ordinary_completions_get_a_score_each":
        assert all("not tried" in found[check.__name__] for check in checks[1:])
    assert list(BROKEN) == [check.__name__ for check in CHECKS]


def test_writing_to_a_problem_is_found():
    found = failures(recipe_of(Remembers), [conformance.changes_nothing_of_the_run])
    assert "writes to the columns of a problem" in found["changes_nothing_of_the_run"]


class Waits(Works):
    def score(self, problems, completions):
        threading.Event().wait()


def test_a_judge_that_hangs_is_found_and_tried_once(monkeypatch):
    monkeypatch.setattr(conformance, "LIMIT_S", 0.1)
    first, *others = failures(recipe_of(Waits)).values()
    assert first.startswith("it does not return within")
    assert all(sentence.startswith("not tried") for sentence in others)
    assert len(others) == len(CHECKS) - 1


@pytest.mark.slow
def test_a_reward_model_and_an_own_judge_keep_every_promise(tmp_path):
    assert set(failures(recipe_of(Works, per=2.0)).values()) == {""}
    path = save_reward_model(tmp_path / "judge", liked="4", context=256)
    shipped = build_recipe({"judge.name": "reward-model", "judge.path": str(path)})
    assert set(failures(shipped, ONE_PROCESS).values()) == {""}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "gone:Judge"}, r"judge\.name: cannot import 'gone'"),
        ({"name": "tests.support.own_judges:digits"}, r"is no judge: it is a class with a method score\(problems"),
        ({"name": "tests.support.own_parts:Length", "settings": {"pre": 1}}, "opened as Length.*unexpected keyword"),
        ({"name": "tests.support.own_parts:Length", "settings": {"per": 0.0}}, "cannot be opened: ZeroDivisionError"),
        ({"name": "tests.support.own_parts:Length", "path": "a/b"}, "name two judges"),
        ({"name": "tests.support.own_parts:Length", "rubric": "r"}, "judge.rubric is only used with judge.url"),
        ({"path": "a/b", "settings": {"per": 1}}, "judge.settings is only used with judge.name"),
        ({"name": "reward-model"}, "judge.name = 'reward-model' needs judge.path"),
        ({"name": "reward-model", "url": "http://host", "path": "a/b"}, "name two judges"),
        ({"name": "nobodys"}, "unknown judge 'nobodys'"),
        ({"settings": {"per": 1}}, "judge.settings is only used with judge.path or judge.url or judge.name"),
    ],
)
def test_a_judge_that_cannot_be_opened_is_refused_in_a_sentence(settings, sentence):
    def opened():
        recipe = build_recipe({f"judge.{key}": value for key, value in settings.items()})
        return conformance.make_judge(recipe, start_runtime(recipe.run))

    with pytest.raises(ConfigError, match=sentence):
        opened()


def test_pairs_are_not_checked():
    judged = {"judge.url": "http://host", "judge.model": "m", "judge.rubric": "r", "judge.mode": "pairwise"}
    with pytest.raises(ConfigError, match="compares completions, and these checks are about the score of one"):
        failures(build_recipe(judged))

"""The promises of a verifier: shipped ones keep them, and each of a row of broken ones is told by its promise."""

import re
import sys

import pytest

from heliostat.tasks.verifier_conformance import CHECKS, failures
from heliostat.tasks.verifiers.builtin import Exact, Function, Math, Numeric, ReasoningGym
from tests.support import broken_rewards as broken
from tests.support.own_judges import digits


@pytest.mark.parametrize(
    "verifier",
    [
        *(Exact(), Numeric(), Numeric(read="last")),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (Math(), ReasoningGym("chain_sum"))),
    ],
    ids=lambda verifier: type(verifier).__name__,
)
def test_every_shipped_verifier_keeps_the_promises_that_own_ones_are_held_to(verifier):
    assert set(failures(verifier, timeout_s=30.0).values()) == {""}


BROKEN = [
    (broken.raises, "ordinary_texts_are_scored", "ZeroDivisionError"),
    (broken.above_one, "full_marks_are_one", "1 is full marks"),
    (broken.counts, "the_same_text_scores_the_same", "keep no state"),
    (broken.draws, "the_same_text_scores_the_same", "draw no random"),
    (broken.needs_text, "odd_texts_are_scored", "IndexError"),
    (broken.hangs, "long_texts_are_scored_in_time", "20000 characters"),
    (broken.ends_the_process, "long_texts_are_scored_in_time", "20000 characters"),
]


def of(function):
    return Function(f"{function.__module__}:{function.__name__}")


def test_an_own_verifier_that_keeps_them_is_let_in():
    assert set(failures(of(digits)).values()) == {""}
    assert {promise for _, promise, _ in BROKEN} == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize(("function", "promise", "said"), BROKEN, ids=lambda one: getattr(one, "__name__", None))
def test_each_broken_promise_is_found(function, promise, said):
    found = failures(of(function), timeout_s=0.5 if function is broken.hangs else 5.0)
    assert re.search(said, found[promise])
    assert "\n" not in found[promise]


def test_one_that_no_worker_process_can_import_fails_every_promise(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(
        "import os\nif os.environ.get('HELIOSTAT_VERIFIER_PROCESS'):\n    1 / 0\n"
        "def reward(completions, **columns):\n    return [0.0]\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = failures(Function("only_here:reward", folder=str(tmp_path)))
    assert all("ZeroDivisionError" in sentence for sentence in found.values())
    sys.modules.pop("only_here", None)

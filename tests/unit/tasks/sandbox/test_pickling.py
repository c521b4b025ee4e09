"""Reward functions on their way to verifier processes: by value where they cannot be imported, and no run inside."""

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from heliostat.config import ConfigError, build_recipe
from heliostat.named_imports import resolve
from heliostat.nested_runs import INSIDE, NestedRun, importing, refuse_nested
from heliostat.tasks import VerifierError, VerifierPool, load_task
from heliostat.tasks.data.in_memory import registering, with_registered
from heliostat.tasks.sandbox import pickling as carrying_module
from heliostat.tasks.sandbox.pickling import dump_function, is_importable

ROWS = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(4) for b in range(4)]


def scores_of(rewards, texts=("1", "22", "333")):
    """What the functions give some completions of one problem, through real verifier processes."""
    with registering() as given:
        tables = with_registered(build_recipe({}), given, ROWS, rewards)
        task = load_task(build_recipe(tables).task[0], 0)
        with VerifierPool([task]) as pool:
            verdicts = pool.judge(task.train[0], texts).result(timeout=120)
    assert not any(verdict.failure for verdict in verdicts), verdicts
    return [verdict.scores for verdict in verdicts]


def only(rewards):
    return [next(iter(scores.values())) for scores in scores_of(rewards)]


# -- every kind of function -------------------------------------------------------------------------------------------

SCALE = 2.0


def uses_a_global_and_a_helper(completions, **columns):
    return [SCALE * helper(text) for text in completions]


def helper(text):
    return float(len(text))


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, completions, **columns):
        return [self.weight * len(text) for text in completions]

    def method(self, completions, **columns):
        return self(completions)


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **columns):
        return [2.0 * reward for reward in function(*args, **columns)]

    return wrapper


@doubled
def decorated(completions, answer):
    return [float(len(text)) for text in completions]


@functools.lru_cache
def cached(text):
    return float(len(text))


def calls_a_cached_function(completions, **columns):
    return [2.0 * cached(text) for text in completions]


async def awaited(completions, **columns):
    return [2.0 * len(text) for text in completions]


def factored(completions, factor, **columns):
    return [factor * len(text) for text in completions]


def closure():
    weights = {"each": 2.0}

    def reward(completions, **columns):
        return [weights["each"] * len(text) for text in completions]

    return reward


@pytest.mark.slow
def test_functions_of_every_kind_give_their_scores_in_another_process():
    functions = [
        uses_a_global_and_a_helper,
        Weighted(2.0),
        Weighted(2.0).method,
        decorated,
        calls_a_cached_function,
        awaited,
        functools.partial(factored, factor=2.0),
        closure(),
        lambda completions, **columns: [2.0 * len(text) for text in completions],
    ]
    for scores, wanted in zip(scores_of(functions), (2.0, 4.0, 6.0), strict=True):
        assert list(scores.values()) == [wanted] * len(functions)
        assert list(scores)[1:4] == ["Weighted", "method", "decorated"]


@pytest.mark.slow
def test_a_closed_over_tensor_travels():
    import torch

    weight = torch.tensor([2.0])
    assert only([lambda completions, **columns: [(weight * len(text)).sum() for text in completions]]) == [2, 4, 6]


@pytest.mark.slow
def test_several_functions_keep_their_names_and_the_reward_is_their_sum():
    scores = scores_of([decorated, lambda completions, **c: [1.0], lambda completions, **c: [3.0]])
    assert scores[1] == {"decorated": 4.0, "lambda": 1.0, "lambda-2": 3.0}


@pytest.mark.slow
def test_tables_and_names_go_with_functions():
    assert scores_of([{"name": decorated, "weight": 0.5}, "exact"], ["x"])[0].keys() == {"decorated", "exact"}


# -- what cannot travel is named --------------------------------------------------------------------------------------


def uses_a_lock():
    lock = threading.Lock()

    def reward(completions, **columns):
        with lock:
            return [1.0 for _ in completions]

    return reward


def uses_it_through_a_helper():
    inner = uses_a_lock()
    return lambda completions, **columns: inner(completions)


class Holds:
    def __init__(self):
        self.connection = threading.Lock()

    def __call__(self, completions, **columns):
        return [1.0]


def closes_over_a_generator():
    stream = (number for number in range(3))
    return lambda completions, **columns: [float(next(stream))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "variable"),
    [
        (uses_a_lock(), "lock"),
        (uses_it_through_a_helper(), "lock"),
        (Holds(), "connection"),
        (closes_over_a_generator(), "stream"),
        (functools.partial(factored, factor=threading.Lock()), "factor"),
    ],
    ids=["closure", "helper", "object", "generator", "partial"],
)
def test_a_variable_that_cannot_travel_is_named_before_anything_starts(function, variable):
    with pytest.raises(ConfigError, match=rf"reward function '\w+' uses '{variable}' \(\w+\), which cannot be sent"):
        scores_of([function])


def test_a_function_with_too_much_in_it_is_refused_by_the_variables_name(monkeypatch):
    monkeypatch.setattr(carrying_module, "MAX_BYTES", 2**20)
    model, small = bytes(3 * 2**20), bytes(10)
    with pytest.raises(ValueError, match=r"carries 3 MiB to each verifier process, most of it 'model'"):
        dump_function(lambda completions, **columns: [float(len(model) + len(small))])


def test_an_imported_function_travels_as_its_name():
    assert is_importable(os)
    assert is_importable(sys.modules["heliostat.tasks.verifier_pool.pool"])
    assert len(dump_function(os.path.join)) < 100
    assert not is_importable(sys.modules["__main__"])


# -- scripts, standard input, modules beside them ---------------------------------------------------------------------

JUDGE = """
import sys, pathlib
sys.stderr.write("body runs\\n")
SCALE = 2.0
def reward(completions, **columns): return [SCALE * len(text) for text in completions]
from heliostat.config import build_recipe
from heliostat.tasks import VerifierPool, load_task
from heliostat.tasks.data.in_memory import registering, with_registered
rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(4) for b in range(4)]
def judge(verifier):
    with registering() as given:
        task = load_task(build_recipe(with_registered(build_recipe({}), given, rows, [verifier])).task[0], 0)
        with VerifierPool([task]) as pool:
            for verdict in pool.judge(task.train[0], ["1", "22"]).result(timeout=120):
                print(verdict.scores, verdict.failure)
"""


def python(*arguments, folder, text=None):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=text, text=True, capture_output=True, timeout=240, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("verifier", ["reward", "'train:reward'", "'__main__:reward'"])
def test_a_script_without_guard_runs_once(tmp_path, verifier):
    (tmp_path / "train.py").write_text(f"{JUDGE}\njudge({verifier})\n")
    done = python("train.py", folder=tmp_path)
    assert done.stderr.count("body runs") == 1, done.stderr
    assert [line.count("2.0") + line.count("4.0") for line in done.stdout.splitlines()] == [1, 1]


@pytest.mark.slow
def test_standard_input_has_rewards_too(tmp_path):
    done = python("-", folder=tmp_path, text=f"{JUDGE}\njudge(reward)\n")
    assert (done.stderr.count("body runs"), len(done.stdout.splitlines())) == (1, 2), done.stderr


@pytest.mark.slow
def test_a_child_of_multiprocessing_has_rewards_too(tmp_path):
    start = "import multiprocessing\nif __name__ == '__main__':\n    p = multiprocessing.get_context('spawn').Process("
    (tmp_path / "train.py").write_text(f"{JUDGE}\n{start}target=judge, args=(reward,))\n    p.start(); p.join()\n")
    done = python("train.py", folder=tmp_path)
    assert len(done.stdout.splitlines()) == 2, done.stderr
    assert done.stderr.count("body runs") == 2  # multiprocessing's own import of the script


@pytest.mark.slow
def test_a_module_beside_the_script_may_take_things_from_it(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "from __main__ import SCALE\ndef reward(completions, **c): return [SCALE * len(text) for text in completions]\n"
    )
    (tmp_path / "train.py").write_text(f"{JUDGE}\nimport rewards\njudge(rewards.reward)\n")
    done = python("train.py", folder=tmp_path)
    assert "cannot be sent" not in done.stderr
    assert [line.count("2.0") + line.count("4.0") for line in done.stdout.splitlines()] == [1, 1], done.stderr


@pytest.mark.slow
def test_a_module_that_starts_a_run_while_it_is_imported_runs_once(tmp_path):
    (tmp_path / "experiment.py").write_text(f"{JUDGE}\njudge(reward)\n")
    done = python("-c", "import experiment", folder=tmp_path)
    assert done.stderr.count("body runs") == 1, done.stderr
    assert [line.count("2.0") + line.count("4.0") for line in done.stdout.splitlines()] == [1, 1]


def test_a_module_that_trains_when_it_is_imported_is_refused_where_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "trains_at_once.py").write_text(
        "import heliostat\ndef reward(completions): return [1.0]\nheliostat.post_train('demo')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NestedRun, match="'trains_at_once:reward' starts a run whenever it is imported"):
        resolve("trains_at_once:reward")


@pytest.mark.slow
def test_a_function_that_imports_a_training_ends_the_run_in_a_sentence(tmp_path, monkeypatch):
    Path(tmp_path / "trains_later.py").write_text("import heliostat\nKEY = 'x'\nheliostat.post_train('demo')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def reward(completions, **columns):
        from trains_later import KEY

        return [float(KEY in text) for text in completions]

    with pytest.raises(VerifierError, match="a verifier process may not start a run, and a module that it imported"):
        only([reward])


@pytest.mark.parametrize("inside", [True, False])
def test_no_run_no_evaluation_and_no_pool_start_inside(monkeypatch, inside):
    import heliostat

    if inside:
        monkeypatch.setenv(INSIDE, "1")
    starts = (
        lambda: heliostat.post_train("demo"),
        lambda: heliostat.sft("demo"),
        lambda: heliostat.evaluate("tiny", "demo"),
        lambda: heliostat.sample("tiny", "demo"),
        lambda: VerifierPool([]).__enter__(),
    )
    for start in starts:
        with importing("" if inside else "module:function"), pytest.raises(NestedRun):
            start()


def test_outside_everything_may_start():
    refuse_nested("a run")

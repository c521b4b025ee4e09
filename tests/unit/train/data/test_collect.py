"""Rejection sampling stops where it should, goes on where it was stopped, and charges every attempt."""

import json

import pytest

from heliostat.config import load_recipe
from heliostat.traces import Bank, summarise
from heliostat.train.console.progress import Display
from heliostat.train.data import collect
from heliostat.train.data.collect import Quota, run_collect, spent_on

RECIPE = """
[run]
num_threads = 1
[model]
path = "tiny"
settings = {{hidden_size = 32, intermediate_size = 64, num_layers = 2, num_heads = 2, num_kv_heads = 1}}
[task]
name = "file"
path = "{data}"
answer_column = "answer"
verifiers = [{{name = "tests.unit.train.data.test_collect:even_length"}}]
num_train = 12
num_heldout = 1
[rollout]
prompts_per_step = 5
group_size = 4
max_new_tokens = 3
temperature = 3.0
"""


def even_length(completions, **columns):
    """A coin that the model throws with its words; one problem never succeeds."""
    never = columns["answer"][0] == "3"
    return [float(not never and len(text) % 4 == 1) for text in completions]


@pytest.fixture
def recipe(tmp_path):
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n)} for n in range(13)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(data=tmp_path / "data.jsonl"))
    return load_recipe(str(tmp_path / "recipe.toml"), {})


class Stopped(BaseException):
    pass


class StopsAfter(Display):
    """A display that ends the command after some chunks of problems."""

    def __init__(self, num_chunks):
        super().__init__()
        self.num_left = num_chunks

    def step(self, *progress):
        self.num_left -= 1
        if not self.num_left:
            raise Stopped


def content(path):
    with Bank.open(path) as bank:
        return [(t.problem_id, t.completion_ids, t.seed, t.flops) for t in bank], bank.query("SELECT * FROM attempts")


@pytest.mark.slow
def test_it_stops_at_its_quota_and_goes_on_where_it_was_killed(recipe, tmp_path):
    quota = Quota(num_successes=2, max_attempts=24)
    summary = run_collect("tiny", recipe, tmp_path / "whole.bank", quota)
    traces, attempts = content(tmp_path / "whole.bank")
    by_problem = {}
    for _, _, problem, number, num, num_success, flops in attempts:
        by_problem.setdefault(problem, []).append((number, num, num_success, flops))
    assert len(by_problem) == 12
    for rounds in by_problem.values():
        assert [number for number, *_ in rounds] == list(range(len(rounds)))
        before_last = sum(successes for _, _, successes, _ in rounds[:-1])
        assert before_last < 2  # not tried again after its quota
        assert sum(num for _, num, *_ in rounds) == 24 or before_last + rounds[-1][2] >= 2
    assert len(traces) == summary.num_successes == sum(r[2] for rounds in by_problem.values() for r in rounds)
    assert summary.num_unsolved >= 1
    assert sum(one.num_problems for one in summary.attempts) == 12 - summary.num_unsolved

    with pytest.raises(Stopped):
        run_collect("tiny", recipe, tmp_path / "stopped.bank", quota, display=StopsAfter(4))
    assert 0 < len(content(tmp_path / "stopped.bank")[1]) < len(attempts)
    run_collect("tiny", recipe, tmp_path / "stopped.bank", quota)
    again, attempts_again = content(tmp_path / "stopped.bank")
    assert sorted(trace[:3] for trace in again) == sorted(trace[:3] for trace in traces)
    assert sorted(row[2:6] for row in attempts_again) == sorted(row[2:6] for row in attempts)


@pytest.mark.slow
def test_every_attempt_is_charged_to_its_problem(recipe, tmp_path, monkeypatch):
    charged = []
    real = collect.Ledger.charge_rollout

    def charge(self, phase, loaded, counts):
        real(self, phase, loaded, counts)
        charged.append(dict(self.flops))

    monkeypatch.setattr(collect.Ledger, "charge_rollout", charge)
    run_collect("tiny", recipe, tmp_path / "traces.bank", Quota(1, 8), num_problems=3, display=Display())
    with Bank.open(tmp_path / "traces.bank") as bank:
        problems = {row[0] for row in bank.query("SELECT problem FROM attempts")}
        assert len(problems) == 3
        assert spent_on(bank, list(problems)) == pytest.approx(charged[-1]["collection"])
        assert summarise(bank).flops == pytest.approx(charged[-1]["collection"])
        assert 0 < spent_on(bank, [min(problems)]) < charged[-1]["collection"]


def test_a_quota_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one success"):
        Quota(0, 5)

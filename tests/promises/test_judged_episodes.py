"""Runs whose judge scores whole episodes, with real environment processes."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from heliostat.config import ConfigError, build_recipe
from heliostat.research import open_experiment
from heliostat.rollout import SampleRequest, SamplingSettings
from heliostat.train import run_eval, run_recipe
from tests.promises import test_ranks
from tests.promises.test_agents import RECIPE, SHAPE_TEXT, ending_turns, overrides
from tests.promises.test_judges import kill_at_step
from tests.support import small
from tests.support.fake_judge import judging
from tests.unit.train.judges.test_pairs import longer, prefer

SHORT = {
    "train.num_steps": 2,
    "eval.every": 0,
    "eval.final_samples": 1,
    "train.try_export": False,
    "run.num_threads": 1,
}


class Turns:
    """Pays a quarter for every turn of the assistant, writes down what it reads, and may sleep."""

    def __init__(self, log="", sleeps_at=()):
        self.log, self.sleeps_at = log, sleeps_at

    def score(self, problems, completions):
        rows = [[one.problem_id, one.question, told.parts] for one, told in zip(problems, completions, strict=True)]
        if self.log:
            with Path(self.log).open("a") as log:
                log.write("".join(json.dumps(row) + "\n" for row in rows))
        nums = [sum(side == "assistant" for side, _ in parts) for _, _, parts in rows]
        return [None if num in self.sleeps_at else num / 4 for num in nums]


def guessing(folder, **more):
    """A recipe of small numbers to guess, in which this judge scores the episodes."""
    shipped = 'name = "guess-the-number"\nmax_number = 4\nmax_guesses = 3'
    text = RECIPE.replace('name = "tests.support.environments:Worlds"', shipped)
    path = folder / "agent.toml"
    path.write_text(small.weights.into(text.format(rollout="", shape=SHAPE_TEXT)))
    own = {"judge.name": f"{__name__}:Turns"} if not {"judge.name", "judge.url"} & more.keys() else {}
    return path, small.load_recipe(str(path), SHORT | own | more)


def steps(recipe, folder):
    result = run_recipe(recipe, folder)
    assert result.status == "finished", result.reason
    return [line for line in small.metrics(folder) if line["step"] > 0]


def asked(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_judge_alone_gives_the_reward_of_episodes_while_the_environment_measures(tmp_path, capsys):
    log = tmp_path / "asked.jsonl"
    _, recipe = guessing(tmp_path, **{"judge.settings": {"log": str(log)}, "judge.weight": 2.0})
    lines = steps(recipe, tmp_path / "run")
    for line in lines:
        success, right, wrong = line["reward/success"], line.get("judge/right", 0.0), line.get("judge/wrong", 0.0)
        assert line["reward/mean"] == pytest.approx(2 * line["judge/score"]) == pytest.approx(line["agent/turns"] / 2)
        assert line["judge/score"] == pytest.approx(success * right + (1 - success) * wrong)
        assert line["judge/unscored"] == 0
    assert any(0 < line["reward/success"] < 1 for line in lines)
    rows = asked(log)
    assert all(question == "1 to 4" for _, question, _ in rows)
    assert {side for _, _, parts in rows for side, _ in parts} == {"assistant", "environment"}
    assert "the judge is not tried with known exploits" in capsys.readouterr().out
    assert "judge" not in json.loads((tmp_path / "run" / "audit.json").read_text())


@pytest.mark.slow
def test_a_score_is_added_to_the_environments_reward(tmp_path):
    _, recipe = guessing(tmp_path, **{"judge.alone": False, "judge.weight": 0.1})
    lines = steps(recipe, tmp_path / "run")
    for line in lines:
        assert line["reward/mean"] == pytest.approx(line["reward/success"] + 0.1 * line["judge/score"])
    assert any(0 < line["reward/success"] < 1 for line in lines)


@pytest.mark.slow
def test_episodes_without_a_score_leave_their_groups_and_too_many_stop_the_run(tmp_path):
    settings = {"judge.settings": {"sleeps_at": [3]}, "judge.max_unscored": 0.95, "rollout.max_staleness": 1}
    _, recipe = guessing(tmp_path, **settings)
    lines = steps(recipe, tmp_path / "run")
    assert any(0 < line["judge/unscored"] < 1 for line in lines)
    for line in lines:
        assert line["reward/completions"] <= 24 * (1 - line["judge/unscored"]) + 1e-9
        assert line["reward/mean"] == pytest.approx(line["judge/score"])
        assert line["reward/mean"] <= 0.5
    _, recipe = guessing(tmp_path, **{"judge.settings": {"sleeps_at": [1, 2, 3, 4]}})
    result = run_recipe(recipe, tmp_path / "second")
    assert result.status == "failed"
    assert "scored only 0 of" in result.reason
    assert "judge.max_unscored = 0.5; the last reason: judge" in result.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:environment")
def test_a_judge_reads_what_both_sides_read_and_no_episode_whose_environment_failed(tmp_path):
    log = tmp_path / "asked.jsonl"
    own = {"judge.name": f"{__name__}:Turns", "judge.settings": {"log": str(log)}, "judge.alone": False}
    with open_experiment(build_recipe({}, overrides(tmp_path, fails="odd") | own)) as experiment:
        ending_turns(experiment)
        verdicts = experiment.pool.begin()
        prompts = [experiment.bundle.prompt(problem) for problem in experiment.problems(0, 12)]
        request = SampleRequest(
            prompts, 4, SamplingSettings(), seed=1, policy_step=0, on_group=verdicts.submit
        )  # as in training
        groups = verdicts.finish(experiment.bundle.engine.sample(request))
    rows = asked(log)
    assert len(rows) == sum(len(one.completions) for one in groups) < 12 * 4
    problems = {group.prompt.problem.problem_id: group.prompt.problem for group in groups}
    for problem_id, question, parts in rows:
        assert question.startswith(f"{problems[problem_id].prompt}\nworld "), "the first observation is a part of it"
        for (side, text), (other, answer) in pairwise(parts):
            assert (side, other) in {("assistant", "environment"), ("environment", "assistant")}
            assert side == "environment" or answer == f"heard {len(text)}"
    assert any(len(parts) == 5 for _, _, parts in rows)
    for group in groups:
        for one, verdict in zip(group.completions, group.verdicts, strict=True):
            given = sum(turn.reward or 0.0 for turn in one.turns)
            assert verdict.reward == pytest.approx(given + len(one.turns) / 4), "once an episode, on top of its turns'"
            assert verdict.success == any(turn.success for turn in one.turns)


@pytest.mark.slow
def test_replayed_turns_belong_to_the_conversation(tmp_path):
    log = tmp_path / "asked.jsonl"
    own = {"judge.name": f"{__name__}:Turns", "judge.settings": {"log": str(log)}}
    with open_experiment(build_recipe({}, overrides(tmp_path) | own)) as experiment:
        ending_turns(experiment)
        groups = experiment.sample(experiment.problems(0, 6), seed=1)
        group, number = next(
            (group, number) for group in groups for number, one in enumerate(group.completions) if len(one.turns) == 3
        )
        one, rows = group.completions[number], asked(log)
        whole = [parts for problem_id, _, parts in rows if problem_id == group.prompt.problem.problem_id][number]
        start = one.turns[2].start
        given = replace(group.prompt, prefix_ids=one.token_ids[:start], prefix_turns=tuple(one.turns[:2]), shown=None)
        log.unlink()
        request = SampleRequest([given], 4, SamplingSettings(), seed=5, policy_step=0)
        (continued,) = experiment.pool.verify(experiment.bundle.engine.sample(request))
    assert [len(each.turns) for each in continued.completions] == [1] * 4
    for _, question, parts in asked(log):
        assert question.startswith(f"{group.prompt.problem.prompt}\nworld ")
        assert parts[:4] == whole[:4]
        assert len(parts) == 5
    assert continued.rewards == [0.75] * 4


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_scores(tmp_path):
    more = {"train.num_steps": 4, "train.checkpoint_every": 1, "rollout.max_staleness": 1}
    _, recipe = guessing(tmp_path, **more)
    lines = steps(recipe, tmp_path / "whole")
    kill_at_step(recipe, tmp_path / "killed", 33)
    assert steps(recipe, tmp_path / "killed") == lines
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_an_environment_that_says_nothing_leaves_success_to_the_score(tmp_path, capsys):
    text = guessing(tmp_path)[0].read_text()
    shipped = text[text.index('name = "guess-the-number"') : text.index("max_turns")]
    path = tmp_path / "mute.toml"
    path.write_text(text.replace(shipped, 'name = "tests.support.environments:Mute"\n'))
    recipe = small.load_recipe(str(path), SHORT | {"judge.name": f"{__name__}:Turns", "warm_start.num_steps": 20})
    result = run_recipe(recipe, tmp_path / "run")
    assert result.status == "finished", result.reason
    assert "oracle fails" not in capsys.readouterr().out
    (evaluation,) = run_eval([str(tmp_path / "run")], recipe, num_samples=4).evaluations
    assert 0.5 < evaluation.pass_at_1 <= 1.0, "two turns, which the environment ended"
    strict = build_recipe(recipe.model_dump(mode="json"), {"judge.success_at": 0.6})
    assert run_eval([str(tmp_path / "run")], strict, num_samples=4).evaluations[0].pass_at_1 == 0.0


LANGUAGE_MODEL = {"judge.model": "m", "judge.rubric": "Short is good.", "judge.high": 100.0, "judge.prompt_price": 1.0}


@pytest.mark.slow
def test_two_ranks_ask_a_language_model_about_episodes_what_one_asks(tmp_path):
    few = {"--train.num_steps": 2, "--warm_start.num_steps": 4, "--eval.every": 0, "--eval.final_samples": 1}
    few |= {"--train.try_export": "false", "--task.num_heldout": 4, "--guard.panel_every": 0}
    asked_by, rows = [], []
    path, _ = guessing(tmp_path)
    for num_ranks in (1, 2):
        with judging(lambda text: f"SCORE: {min(100, len(text))}") as fake:
            own = {f"--{key}": value for key, value in LANGUAGE_MODEL.items()} | {"--judge.url": fake.url}
            done = test_ranks.run(path, tmp_path / str(num_ranks), num_ranks=num_ranks, **few, **own)
            assert done.returncode == 0, done.stderr + done.stdout
            asked_by.append({json.dumps(body) for body in fake.bodies})
            rows.append([row for row in small.metrics(tmp_path / str(num_ranks)) if row["step"] > 0])
    assert len(asked_by[0] & asked_by[1]) >= 0.9 * len(asked_by[0] | asked_by[1]) > 0  # rounding may change a token
    for one, two in zip(*rows, strict=True):
        assert two["reward/mean"] == pytest.approx(two["judge/score"])
        assert two["judge/calls"] + two["judge/cached"] == one["judge/calls"] + one["judge/cached"]
        for key in ("judge/score", "reward/success"):
            assert two[key] == pytest.approx(one[key], rel=0.05, abs=1e-6)


@pytest.mark.slow
def test_episodes_of_a_group_are_compared_in_pairs(tmp_path):
    own = {key: value for key, value in LANGUAGE_MODEL.items() if key != "judge.high"} | {"judge.mode": "pairwise"}
    with judging() as fake:
        fake.answer = prefer(longer)
        _, recipe = guessing(tmp_path, **own, **{"judge.url": fake.url})
        lines = steps(recipe, tmp_path / "run")
        assert "An answer is an episode" in fake.bodies[0]["messages"][0]["content"]
    for line in lines:
        assert line["judge/score"] == line["reward/mean"] == pytest.approx(0.5)
        assert line["judge/calls"] + line["judge/cached"] > 0
    assert any(0 < line["reward/success"] < 1 for line in lines), "the environment measures it"


def test_pairs_need_somebody_who_says_what_is_right(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{number}"}) + "\n" for number in range(9)))
    own = LANGUAGE_MODEL | {
        "judge.url": "http://127.0.0.1:9",
        "judge.mode": "pairwise",
        "environment.tools": ["tests.support.environment_classes:add"],
    }
    task = {"task.name": "file", "task.path": str(rows), "task.num_train": 4, "task.num_heldout": 2}
    del own["judge.high"]
    with (
        pytest.raises(ConfigError, match=r"no verifiers, and judge\.mode = 'pairwise' says which of two"),
        open_experiment(build_recipe({}, own | task | {"model.path": "tiny", "run.num_threads": 1})),
    ):
        pass

"""Runs whose reward comes from a judge: a model in this process, or one on a server."""

import json
import os
import signal
import time

import pytest

from heliostat.config import ConfigError
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe
from tests.support import small
from tests.support.fake_judge import judging
from tests.support.forks import in_child
from tests.support.reward_model import save_reward_model

SHORT = {"warm_start__num_steps": 0, "train__num_steps": 2, "eval__final_samples": 1, "train__try_export": False}


@pytest.fixture(scope="module")
def liking_7(tmp_path_factory):
    """A reward model that pays 1 for texts that end in 7, and -1 for all others."""
    return save_reward_model(tmp_path_factory.mktemp("judges") / "a reward model", liked="7")


def finished(recipe, folder):
    result = run_recipe(recipe, folder)
    assert result.status == "finished", result.reason
    return [line for line in small.metrics(folder) if line["step"] > 0]


def unverified(folder, **overrides):
    """The small recipe without a verifier."""
    path = small.write_recipe(folder)
    path.write_text(path.read_text().replace('verifiers = [{name = "numeric"}]\n', ""))
    return small.load_recipe(str(path), {key.replace("__", "."): value for key, value in overrides.items()})


def kill_at_step(recipe, folder, num_lines):
    child = in_child(lambda: run_recipe(recipe, folder))
    while not (folder / "metrics.jsonl").is_file() or len(small.metrics(folder)) < num_lines:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_reward_model_gives_the_reward_while_verifiers_measure_and_a_killed_run_continues(liking_7, tmp_path):
    def recipe():
        more = {"warm_start__num_steps": 32, "train__num_steps": 4, "train__checkpoint_every": 2}
        return small.recipe(tmp_path, **SHORT | more, judge__path=str(liking_7))

    lines = finished(recipe(), tmp_path / "whole")
    for line in lines:
        success, right, wrong = line["reward/success"], line.get("judge/right", 0.0), line.get("judge/wrong", 0.0)
        assert line["reward/mean"] == line["judge/score"] == pytest.approx(success * right + (1 - success) * wrong)
        assert line["judge/unscored"] == 0
    assert any(0 < line["reward/success"] < 1 for line in lines)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["flops"]["judge"] == lines[-1]["compute/judge_flops"] > 0
    kill_at_step(recipe(), tmp_path / "killed", 35)
    assert finished(recipe(), tmp_path / "killed") == lines
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_without_verifiers_success_is_a_score_and_evaluation_asks_the_judge_too(liking_7, tmp_path):
    from heliostat.train import run_eval

    recipe = unverified(tmp_path, **SHORT, judge__path=str(liking_7), judge__weight=2.0)
    lines = finished(recipe, tmp_path / "run")
    for line in lines:
        assert line["reward/mean"] == pytest.approx(4 * line["reward/success"] - 2, abs=1e-3)
        assert "judge/right" not in line, "nothing tells right from wrong"
    (evaluation,) = run_eval([str(tmp_path / "run")], recipe, num_samples=2).evaluations
    assert evaluation.mean_reward == pytest.approx(4 * evaluation.pass_at_1 - 2, abs=1e-3)


def test_beside_verifiers_both_rewards_add_up(liking_7, tmp_path):
    more = {"judge__path": str(liking_7), "judge__alone": False, "judge__weight": 0.1, "warm_start__num_steps": 15}
    for line in finished(small.recipe(tmp_path, **SHORT | more), tmp_path / "run"):
        assert line["reward/mean"] == pytest.approx(line["reward/success"] + 0.1 * line["judge/score"])


def test_a_score_that_rises_without_success_raises_the_alarm_and_the_audit_names_an_exploit(tmp_path):
    """The judge likes texts that end in 7 or in a dot, and padding ends in a dot."""
    judge = save_reward_model(tmp_path / "judge", liked="7.", context=512)
    more = {"warm_start__num_steps": 40, "train__num_steps": 26, "optimizer__lr": 3e-3, "eval__every": 0}
    lines = finished(small.recipe(tmp_path, **SHORT | more, judge__path=str(judge)), tmp_path / "run")
    assert lines[-1]["judge/score"] > lines[0]["judge/score"] + 0.5
    assert max(line.get("judge/hacking", 0.0) for line in lines) > 5
    events = read_metrics(tmp_path / "run" / "events.jsonl")
    assert any(event["rule"] == "judge-hacked" for event in events)
    (report,) = json.loads((tmp_path / "run" / "audit.json").read_text())["judge"]
    assert "length" in report["verdict"]


def test_unscored_completions_leave_their_groups_also_when_sampled_ahead(tmp_path):
    """A context of eight tokens: the question takes seven, so answers of two digits do not fit."""
    judge = save_reward_model(tmp_path / "judge", context=8, liked="7")
    more = {"warm_start__num_steps": 20, "judge__max_unscored": 0.98, "rollout__max_staleness": 1}
    lines = finished(small.recipe(tmp_path, **SHORT | more, judge__path=str(judge)), tmp_path / "run")
    for line in lines:
        assert 0 < line["judge/unscored"] < 1
        assert line["reward/completions"] <= 32 * (1 - line["judge/unscored"]) + 1e-9
        assert -1.01 < line["reward/mean"] < 1.01
        assert line["reward/failures"] == 0


def test_a_run_whose_judge_scores_too_little_stops_with_the_reason(tmp_path):
    judge = save_reward_model(tmp_path / "judge", context=4)
    result = run_recipe(small.recipe(tmp_path, **SHORT, judge__path=str(judge)), tmp_path / "run")
    assert result.status == "failed"
    assert "scored only 0 of 20 completions, and judge.max_unscored = 0.5; the last" in result.reason
    assert "question and completion have" in result.reason


def test_a_resumed_run_with_another_reward_model_is_refused(liking_7, tmp_path):
    judge = tmp_path / "judge"
    judge.symlink_to(liking_7)
    recipe = small.recipe(
        tmp_path, **SHORT | {"train__num_steps": 4, "train__checkpoint_every": 1}, judge__path=str(judge)
    )
    kill_at_step(recipe, tmp_path / "run", 2)
    judge.unlink()
    save_reward_model(judge, liked="8")
    with pytest.raises(ConfigError, match="is not the judge that gave this run's rewards so far"):
        run_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weight": 2.0}, "judge.weight is only used with judge.path or judge.url"),
        ({"path": "a/b", "model": "m"}, "judge.model is only used with judge.url"),
        ({"url": "http://host", "label": "good"}, "judge.label is only used with judge.path"),
        ({"url": "http://host", "model": "m"}, "needs either judge.rubric or judge.rubric_file"),
        ({"url": "http://host/v1", "model": "m", "rubric": "r"}, "must end before /v1"),
        ({"url": "http://u:p@host", "model": "m", "rubric": "r"}, "holds a password"),
        ({"url": "http://host", "model": "m", "rubric": "r", "low": 10.0}, "must be below judge.high"),
        ({"url": "http://host", "model": "m", "rubric": "r", "budget": 1.0}, "needs judge.prompt_price"),
        ({"path": "./nowhere"}, r"^judge\.path '\./nowhere': no such folder"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run_recipe(small.recipe(tmp_path, **SHORT, **{f"judge__{key}": value for key, value in settings.items()}))


def test_a_language_model_is_no_reward_model(tmp_path):
    run_recipe(small.recipe(tmp_path, **SHORT | {"train__num_steps": 0, "warm_start__num_steps": 1}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"judge\.path: .* lacks 1 weights \(first: score\.weight\)"):
        run_recipe(small.recipe(tmp_path, **SHORT, judge__path=str(tmp_path / "run")), tmp_path / "second")


def test_a_language_models_grades_are_the_reward_and_a_server_that_dies_stops_the_run_which_then_asks_nothing_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "a-secret-key")
    own = {"judge__model": "m", "judge__rubric": "Short is good.", "judge__key_name": "MY_KEY", "judge__retries": 0}
    own |= {
        "judge__prompt_price": 1.0,
        "judge__max_unscored": 0.0,
        "eval__every": 0,
        "eval__num_problems": 4,
        "task__num_heldout": 4,
    }
    more = SHORT | own | {"train__num_steps": 3, "train__checkpoint_every": 1, "judge__high": 100.0}

    def grade(text):
        return f"SCORE: {min(100, len(text))}"

    with judging(grade) as fake:
        lines = finished(small.recipe(tmp_path, **more, judge__url=fake.url), tmp_path / "whole")
        num_whole = len(fake.bodies)
        whole = "".join(path.read_text(errors="replace") for path in (tmp_path / "whole").glob("*.*"))
        assert "a-secret-key" not in whole
        assert sum(line["judge/calls"] for line in lines) <= num_whole
        assert lines[-1]["judge/cost"] == pytest.approx(num_whole * 100 / 1e6, rel=0.3)
    with judging(grade) as first:
        first.on_call = lambda number: first.break_off() if number == num_whole // 2 else None
        result = run_recipe(small.recipe(tmp_path, **more, judge__url=first.url), tmp_path / "run")
    assert result.status == "failed"
    assert "judge.max_unscored" in result.reason
    replied = len((tmp_path / "run" / "judge-replies" / "rank-0.jsonl").read_text().splitlines())
    assert 0 < replied < num_whole
    with judging(grade) as second:  # at another address
        again = finished(small.recipe(tmp_path, **more, judge__url=second.url), tmp_path / "run")
        assert len(second.bodies) == num_whole - replied
    paid = ("judge/calls", "judge/cached", "judge/tokens")
    assert [{key: line[key] for key in line if key not in paid} for line in again] == [
        {key: line[key] for key in line if key not in paid} for line in lines
    ]
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]

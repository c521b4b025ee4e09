"""Runs with a teacher: a second model, one on a server, beside adapters and a reward, and the policy with a hint."""

import json
import os
import shutil
import signal
import time
import tomllib

import pytest

from heliostat.config import ConfigError, ModelSection, build_recipe
from heliostat.models import load_model
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe
from tests.support import small
from tests.support.fake_server import serving, unavailable
from tests.support.fake_teacher import FakeTeacher, taught_from
from tests.support.forks import in_child
from tests.support.nano import make_nano

SHORT = {"warm_start__num_steps": 0, "train__num_steps": 2, "eval__final_samples": 1, "train__try_export": False}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder with a larger model of the same tokenizer, hardly trained."""
    folder = tmp_path_factory.mktemp("a teacher")
    more = {"warm_start__num_steps": 5, "train__num_steps": 0, "eval__final_samples": 1}
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    result = run_recipe(small.recipe(folder, model__settings=settings, **more), folder / "run")
    assert result.status == "finished", result.reason
    return result.folder


def finished(recipe, folder):
    result = run_recipe(recipe, folder)
    assert result.status == "finished", result.reason
    return [line for line in small.metrics(folder) if line["step"] > 0]


def test_a_group_of_one_without_any_reward_learns_from_a_teacher_and_continues_after_a_kill(teacher, tmp_path):
    def recipe():
        more = {"rollout__group_size": 1, "train__num_steps": 6, "train__checkpoint_every": 2}
        return small.recipe(tmp_path, **SHORT | more, teacher__path=str(teacher), teacher__kind="jsd")

    lines = finished(recipe(), tmp_path / "whole")
    assert lines[-1]["teacher/distance"] < lines[0]["teacher/distance"]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["flops"]["teacher"] == lines[-1]["compute/teacher_flops"] > 0
    spent = sum(flops for phase, flops in summary["flops"].items() if phase != "eval")
    assert lines[-1]["compute/total_flops"] == pytest.approx(spent)
    killed = tmp_path / "killed"
    child = in_child(lambda: run_recipe(recipe(), killed))
    while not (killed / "metrics.jsonl").is_file() or len(small.metrics(killed)) < 3:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert finished(recipe(), killed) == lines
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def on_a_server(teacher):
    """The same teacher, ready to be served."""
    loaded = load_model(ModelSection(path=str(teacher), dtype="float32"), 0)
    loaded.model.eval()
    return loaded


ASKED = ("teacher/calls", "teacher/tokens", "teacher/cached", "compute/teacher_tokens")
"""Metrics that depend on the requests that a run has sent before it was killed."""


def taught(lines):
    return [{key: value for key, value in line.items() if key not in ASKED} for line in lines]


def test_a_teacher_on_a_server_teaches_the_same_run_after_a_kill(on_a_server, tmp_path):
    state = FakeTeacher(on_a_server)
    more = {"rollout__group_size": 2, "train__num_steps": 4, "train__checkpoint_every": 9}
    with serving(state) as url:
        recipe = small.recipe(tmp_path, **SHORT | more, **taught_from(url))
        lines = finished(recipe, tmp_path / "whole")
        killed = tmp_path / "killed"
        child = in_child(lambda: run_recipe(recipe, killed))
        while not (killed / "metrics.jsonl").is_file() or len(small.metrics(killed)) < 2:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = finished(recipe, killed)
    assert taught(again) == taught(lines)
    assert lines[-1]["compute/teacher_tokens"] == sum(line["teacher/tokens"] for line in lines) > 0
    assert again[0]["teacher/tokens"] == 0, "the first step's completions were read before the kill"
    assert "compute/teacher_flops" not in lines[-1]
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["flops"]["teacher"] == 0
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_server_that_fails_ends_the_run_after_its_last_step_and_another_teacher_cannot_continue_it(
    on_a_server, tmp_path
):
    run, more = tmp_path / "run", {"train__num_steps": 2, "train__checkpoint_every": 9}

    def recipe(url):
        return small.recipe(tmp_path, **SHORT | more, **taught_from(url))

    def fails_later(handler, answer):
        later = (run / "metrics.jsonl").is_file() and small.metrics(run)
        return unavailable(handler, answer) if later else answer()

    state = FakeTeacher(on_a_server)
    state.always["/v1/completions"] = fails_later
    with serving(state) as url:
        result = run_recipe(recipe(url), run)
    assert (result.status, result.reason.count("\n")) == ("failed", 0)
    assert f"teacher {url}/v1/completions failed 1 times, last: status 503" in result.reason
    with (
        serving(FakeTeacher(make_nano(eos_bias=0))) as url,
        pytest.raises(ConfigError, match="is not the teacher that"),
    ):
        run_recipe(recipe(url), run)
    with serving(FakeTeacher(on_a_server)) as url:
        lines = finished(recipe(url), run)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1]["compute/teacher_tokens"] == sum(line["teacher/tokens"] for line in lines), "step 1 was saved"


def test_beside_a_reward_adapters_learn_from_both(teacher, tmp_path):
    more = {"lora__rank": 2, "teacher__path": str(teacher), "teacher__alone": False, "teacher__weight": 0.1}
    lines = finished(small.recipe(tmp_path, **SHORT | more), tmp_path / "run")
    assert all(line["teacher/kl"] != 0 for line in lines)
    assert "compute/teacher_flops" in lines[-1]


def test_the_policy_itself_teaches_with_the_answer_in_its_prompt(tmp_path):
    more = {"teacher__path": "self", "teacher__hint": "answer", "teacher__kind": "reverse-kl"}
    lines = finished(small.recipe(tmp_path, **SHORT | more), tmp_path / "run")
    assert all(line["teacher/distance"] > 0 for line in lines)
    assert "teacher" in (tmp_path / "run" / "model" / "README.md").read_text()
    rules = [event.get("rule") for event in read_metrics(tmp_path / "run" / "events.jsonl")]
    assert "nothing-solved" not in rules, "rewards are measured, and need not teach"
    assert "pmd-mean" not in (tmp_path / "run" / "model" / "README.md").read_text(), "no reward trained it"


def test_a_teacher_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^teacher\.path './nowhere': no such folder"):
        run_recipe(small.recipe(tmp_path, **SHORT, teacher__path="./nowhere"), tmp_path / "run")


def test_a_teacher_with_another_tokenizer_is_refused_before_anything_is_sampled(teacher, tmp_path):
    other = tmp_path / "another tokenizer"
    shutil.copytree(teacher / "model", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["7"], vocab["8"] = vocab["8"], vocab["7"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"another tokenizer than model 'tiny' .*token '[78]' has id"):
        run_recipe(small.recipe(tmp_path, **SHORT, teacher__path=str(other)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hint_that_does_not_fit_or_does_not_exist_is_refused_before_anything_is_sampled(tmp_path):
    text = small.shaped(small.write_recipe(tmp_path).read_text().replace('answer_column = "answer"\n', ""))
    own = {"teacher.path": "self", "teacher.hint": "solution", "warm_start.num_steps": 0}
    with pytest.raises(ConfigError, match=r"has no solution, which teacher\.hint = 'solution' needs"):
        run_recipe(build_recipe(tomllib.loads(text), own), tmp_path / "run")
    own = {"teacher__path": "self", "teacher__hint": "answer", "teacher__hint_text": "{hint} " * 300}
    with pytest.raises(ValueError, match=r"line \d+ with its hint\): its prompt has \d+ tokens"):
        run_recipe(small.recipe(tmp_path, **SHORT, **own), tmp_path / "run")
    own |= {"teacher__hint_text": "{hint} " * 166, "rollout__max_new_tokens": 12}
    with pytest.raises(ConfigError, match="more it does not fit the context of teacher 'tiny', which holds 512"):
        run_recipe(small.recipe(tmp_path, **SHORT, **own), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "jsd"}, "teacher.kind is only used with teacher.path"),
        ({"path": "http://host:8000"}, "is a server"),
        ({"path": "a/b", "url": "http://host:8000"}, "name two teachers"),
        ({"url": "host"}, "teacher.url = 'host' is no address"),
        ({"url": "http://host:8000/v1", "model": "m"}, "must end before /v1"),
        ({"url": "http://host:8000"}, "teacher.url needs teacher.model"),
        ({"url": "http://host:8000", "model": "m", "kind": "jsd"}, "needs the teacher's whole distribution"),
        ({"url": "http://host:8000", "model": "m", "dtype": "float32"}, "teacher.dtype is only used with teacher.path"),
        ({"path": "a/b", "retries": 1}, "teacher.retries is only used with teacher.url"),
        ({"path": "tiny"}, "random weights"),
        ({"path": "self"}, "teaches nothing"),
        ({"path": "self", "hint": "answer", "dtype": "float32"}, "teacher.dtype is not used"),
        ({"path": "a/b", "beta": 0.3}, "teacher.beta is only used"),
        ({"path": "a/b", "hint": "answer", "hint_text": "no place"}, "must contain {hint}"),
        ({"path": "a/b", "hint_text": "it is {hint}"}, "teacher.hint_text is only used"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        small.recipe(tmp_path, **{f"teacher__{key}": value for key, value in settings.items()})


@pytest.mark.parametrize("more", [{"rollout__temperature": 0.7}, {"guard__actuator": "temperature"}])
def test_a_temperature_other_than_that_of_a_server_is_refused(tmp_path, more):
    with pytest.raises(ConfigError, match=r"teacher\.url gives log-probabilities at temperature 1"):
        small.recipe(tmp_path, **taught_from("http://host:8000"), **more)


def test_an_actuator_that_acts_on_rewards_is_refused_where_a_teacher_alone_trains(tmp_path):
    recipe = small.recipe(tmp_path, teacher__path="a/b", guard__actuator="tau", guard__mode="act")
    with pytest.raises(ConfigError, match=r"set teacher\.alone = false"):
        run_recipe(recipe, tmp_path / "run")

"""The promise: a run audits its reward before it trains, in its own verifier processes, and says what it found."""

import json
import subprocess
import sys

import pytest

import heliostat
from heliostat.cli import main
from heliostat.tasks.verifier_pool.pool import VerifierPool
from heliostat.train.run import run_recipe
from tests.support import small

REWARDS = "tests.support.rewards"
LAST = [{"name": "numeric", "read": "last"}]
SHORT = {"warm_start__num_steps": 2, "train__num_steps": 2, "eval__every": 0, "eval__final_samples": 1}


def audited(folder):
    return json.loads((folder / "audit.json").read_text())


def rewrite(path, change):
    rows = [change(number, json.loads(line)) for number, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused_recipe(folder, share=1.0, **settings):
    """The small run, with answers of which the verifier cannot make anything in a share of its rows."""
    recipe = small.recipe(folder, **{**SHORT, **settings})
    rewrite(folder / "sums.jsonl", lambda n, row: {**row, "answer": row["answer"] + " apples" * (n < 100 * share)})
    return recipe


def test_a_sound_reward_is_audited_and_trained_on(tmp_path, capsys):
    result = run_recipe(small.recipe(tmp_path, **SHORT), tmp_path / "run")
    assert result.status == "finished", result.reason
    (task,) = audited(result.folder)["tasks"]
    assert (task["num_oracles"], task["refused"], task["verdict"], task["num_left"]) == (100, [], "no trick worked", 0)
    said = capsys.readouterr().out
    assert "100 right answers" in " ".join(said.split())
    assert "warning" not in said


def test_right_answers_that_earn_nothing_stop_the_run_before_it_trains(tmp_path):
    with pytest.raises(heliostat.RunFailed) as caught:
        heliostat.post_train(refused_recipe(tmp_path), run_dir=tmp_path / "run")
    failed = caught.value
    assert "100 of 100 right answers earn nothing" in failed.reason
    assert "sums.jsonl, line " in failed.reason
    assert "the verifier reads '" in failed.reason
    assert "is not a number" in failed.reason
    assert "--no-audit" in failed.reason
    assert "\n" not in failed.reason
    assert failed.folder == tmp_path / "run"
    assert (failed.folder / "metrics.jsonl").read_text() == ""
    assert not (failed.folder / "evals.jsonl").exists()
    assert "42 apples" not in failed.reason
    assert "earn nothing" in (failed.folder / "report.html").read_text()
    assert audited(failed.folder)["stop"] == failed.reason


def test_the_same_command_with_no_audit_goes_on_in_the_same_folder(tmp_path, capsys):
    refused_recipe(tmp_path)
    words = ["train", str(tmp_path / "small.toml"), "--run", str(tmp_path / "run"), *options()]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "100 of 100 right answers earn nothing" in said
    assert main([*words, "--no-audit"]) == 0
    assert [row["step"] for row in small.metrics(tmp_path / "run")] == [-1, 0, 1, 2]


def options():
    return [f"--{key.replace('__', '.')}={value}" for key, value in SHORT.items()]


@pytest.mark.parametrize(
    ("name", "status"), [("any_column", "finished"), ("no_column", "finished"), ("with_answer", "failed")]
)
def test_a_function_that_names_no_column_owes_right_answers_nothing(tmp_path, monkeypatch, name, status):
    (tmp_path / "unpaid.py").write_text(
        "def any_column(completions, **columns): return [0.0]\n"
        "def no_column(completions): return [0.0]\n"
        "def with_answer(completions, answer): return [0.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = small.recipe(tmp_path, **SHORT, task__verifiers=[{"name": f"unpaid:{name}"}])
    result = run_recipe(recipe, tmp_path / "run")
    assert result.status == status, result.reason


@pytest.mark.parametrize(("share", "status"), [(0.05, "finished"), (0.3, "failed")])
def test_the_share_that_may_be_refused_decides(tmp_path, capsys, share, status):
    result = run_recipe(refused_recipe(tmp_path, share), tmp_path / "run")
    assert result.status == status
    assert len(audited(result.folder)["tasks"][0]["refused"]) == 100 * share
    if status == "finished":
        assert "warning: 5 of 100 right answers of 'sums' earn nothing" in " ".join(capsys.readouterr().out.split())
    assert run_recipe(refused_recipe(tmp_path, share, audit__max_refused=0.3), tmp_path / "b").status == "finished"


def test_a_trick_that_works_is_said_and_stops_nothing(tmp_path, capsys):
    recipe = small.recipe(tmp_path, **SHORT, task__verifiers=[{"name": f"{REWARDS}:contains"}])
    result = run_recipe(recipe, tmp_path / "run")
    assert result.status == "finished", result.reason
    assert "warning: containment in the reward of 'sums'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("function", "finding"),
    [("contains", "containment"), ("half", "same reward for all"), ("length", "partial credit")],
)
def test_a_shaped_reward_need_not_know_the_right_answer(tmp_path, capsys, function, finding):
    verifiers = [{"name": f"{REWARDS}:{function}"}]
    recipe = small.recipe(tmp_path, **SHORT, task__verifiers=verifiers, task__shaped=True)
    assert run_recipe(recipe, tmp_path / "run").status == "finished"
    assert f"warning: {finding} in the reward of 'sums'" in " ".join(capsys.readouterr().out.split())


def test_a_shaped_reward_that_fails_on_right_answers_is_refused(tmp_path):
    verifiers = [{"name": f"{REWARDS}:chat"}]
    recipe = small.recipe(tmp_path, **SHORT, task__verifiers=verifiers, task__shaped=True)
    result = run_recipe(recipe, tmp_path / "run")
    assert result.status == "failed"
    assert "100 of 100 right answers earn nothing" in result.reason
    assert "verifier 'tests.support.rewards:chat' raised" in result.reason


def test_a_run_that_continues_does_not_audit_again(tmp_path, monkeypatch, dying):
    recipe = small.recipe(tmp_path, **{**SHORT, "train__checkpoint_every": 1, "train__num_steps": 3})
    dying["left"] = 2
    with pytest.raises(MemoryError):
        run_recipe(recipe, tmp_path / "run")
    found = (tmp_path / "run" / "audit.json").read_bytes()
    monkeypatch.setattr("heliostat.train.run.audit_rewards", lambda *args: pytest.fail("it audited again"))
    assert run_recipe(recipe, tmp_path / "run").status == "finished"
    assert (tmp_path / "run" / "audit.json").read_bytes() == found


def test_the_audit_uses_the_workers_of_the_run(tmp_path, monkeypatch):
    entered = []
    enter = VerifierPool.__enter__

    def counted(self):
        entered.append(self)
        return enter(self)

    monkeypatch.setattr(VerifierPool, "__enter__", counted)
    run_recipe(small.recipe(tmp_path, **SHORT), tmp_path / "run")
    assert len(entered) == 1


def test_supervised_training_alone_is_not_audited(tmp_path):
    recipe = refused_recipe(tmp_path, train__num_steps=0, rollout__stop=["\n"])
    result = run_recipe(recipe, tmp_path / "run")
    assert result.status == "finished", result.reason
    assert not (tmp_path / "run" / "audit.json").exists()


def test_worked_solutions_that_a_stop_string_cuts_are_said(tmp_path, capsys):
    def write(number, row):
        return {**row, "solution": f"I count.\n{row['answer']}"}

    settings = {"task__solution_column": "solution", "rollout__stop": ["\n"], "task__verifiers": LAST}
    recipe = small.recipe(tmp_path, **SHORT, **settings)
    rewrite(tmp_path / "sums.jsonl", write)
    assert run_recipe(recipe, tmp_path / "run").status == "finished"
    assert "warning: 100 worked solutions of 'sums' earn nothing" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_of_two_ranks_one_audits_and_both_stop(tmp_path):
    refused_recipe(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "heliostat"]
    words = ["train", str(tmp_path / "small.toml"), f"--run.root={tmp_path}", "--run.name=both", *options()]
    done = subprocess.run(
        [*command, *words], env=small.environment(), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode != 0
    assert "right answers earn nothing" in done.stderr
    assert audited(tmp_path / "both")["tasks"][0]["num_oracles"] == 100
    assert (tmp_path / "both" / "metrics.jsonl").read_text() == ""

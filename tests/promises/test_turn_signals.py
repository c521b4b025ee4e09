"""A run with an environment tells its turns: in its log, its transcripts and its page; findings name its own limits."""

import json

import pytest

from heliostat.api import post_train

LOOKUP = {
    "model.path": "tiny",
    "task.name": "environment",
    "task.num_train": 16,
    "task.num_heldout": 4,
    "environment.name": "heliostat.tasks.environments.shipped.lookup:Lookup",
    "environment.max_turns": 2,
    "environment.max_tokens_per_turn": 24,
    "environment.max_tokens": 100,
    "environment.num_workers": 1,
    "warm_start.num_steps": 60,
    "rollout.prompts_per_step": 4,
    "rollout.group_size": 2,
    "train.num_steps": 3,
    "train.try_export": False,
    "eval.every": 0,
    "eval.final_samples": 1,
    "run.num_threads": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert post_train(None, LOOKUP, path).status == "finished"
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_logs_its_turns(folder):
    steps = [line for line in lines(folder / "metrics.jsonl") if line["step"] > 0]
    assert len(steps) == 3
    for line in steps:
        assert 1 <= line["agent/turns"] <= 2
        limits = sum(line[f"agent/{key}"] for key in ("turn_truncated", "out_of_tokens", "out_of_turns"))
        assert limits == pytest.approx(line["length/truncated"])
        assert line["agent/failed"] == 0.0
        assert line["agent/entropy:1"] > 0
        assert line["agent/log_ratio:1"] >= 0
        assert "agent/entropy:3" not in line


def test_transcripts_and_the_page_show_conversations(folder):
    rows = lines(folder / "transcripts.jsonl")
    assert {row["phase"] for row in rows} == {"before", "after"}
    assert all(row["turns"][0]["role"] == "assistant" for row in rows)
    assert all(sum(turn["role"] == "assistant" for turn in row["turns"]) <= 2 for row in rows)
    page = (folder / "report.html").read_text()
    assert '<section id="turns">' in page
    assert page.count('class="conversation"') == len(rows)


def test_no_finding_names_a_limit_that_trajectories_do_not_have(folder):
    texts = [line["text"] for line in lines(folder / "events.jsonl")]
    assert texts
    assert not [text for text in texts if "rollout.max_new_tokens" in text]

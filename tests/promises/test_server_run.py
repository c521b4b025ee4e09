"""The promise: a run on a rollout server ends in one sentence when the server fails, continues, and keeps no key."""

import pytest

from heliostat.config import load_recipe
from heliostat.train import run_recipe
from tests.support import fake_server, small
from tests.support.fake_server import served_from, serving_tiny

KEY = "sk-never-written"


GAPS = {"float32": 1e-3, "bfloat16": 0.2}
"""What rounding explains between a server and a trainer that run the same tokens in other shapes, in nats."""


@pytest.fixture
def server(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    path = small.write_recipe(tmp_path)
    path.write_text(small.shaped(path.read_text()))  # every batch has a signal, so that weights move at every step
    recipe = load_recipe(str(path), {})
    with serving_tiny(recipe.model.settings, weights.dtype) as (state, url):
        changes = {
            **served_from(url, tmp_path),
            "train.num_steps": 3,
            "train.checkpoint_every": 1,
        }
        yield state, load_recipe(str(path), changes)


@pytest.mark.parametrize(
    "weights",
    [*small.PLAIN_WEIGHTS, small.Weights("bfloat16", lora_rank=4)],
    ids=str,
    indirect=True,
)
def test_a_run_whose_server_dies_is_continued_and_the_key_is_nowhere(weights, server, tmp_path, capfd):
    state, recipe = server
    folder = tmp_path / "run"
    rehearsal_and_start = [lambda handler, answer: answer()] * 2
    state.faults["/update_weight_version"] = [*rehearsal_and_start, fake_server.dies]  # at the first weights that moved
    failed = run_recipe(recipe, folder)
    assert failed.status == "failed"
    assert "/update_weight_version" in failed.reason
    assert "closed connection" in failed.reason
    assert "\n" not in failed.reason

    finished = run_recipe(recipe, folder)
    assert finished.status == "finished", finished.reason
    steps = [line["step"] for line in small.metrics(folder) if line["step"] > 0]
    assert steps == [1, 2, 3]
    assert max(line.get("policy/sampler_gap", 0.0) for line in small.metrics(folder)) < GAPS[weights.dtype]
    assert {headers["Authorization"] for headers in state.headers} == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    for path in [*folder.rglob("*"), *(tmp_path / "sync").rglob("*")]:
        assert path.is_dir() or KEY.encode() not in path.read_bytes()

"""The promise: several trainer processes share one rollout server, and train what one trains with it."""

import pytest

from tests.promises.test_ranks import run, said, same_curves, write_recipe
from tests.support import small
from tests.support.fake_server import serving_tiny, unavailable


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def with_server(url, folder, **more):
    return {
        "--rollout.engine": "vllm",
        "--rollout.server_url": url,
        "--rollout.sync_dir": folder / "sync",
        "--rollout.server_retries": 0,
        "--guard.panel_every": 0,
        **more,
    }


@pytest.fixture
def server(tmp_path):
    with serving_tiny(small.recipe(tmp_path).model.settings) as (state, url):
        yield state, url


@pytest.fixture
def alone(recipe, server, tmp_path):
    state, url = server
    done = run(recipe, tmp_path / "one", num_ranks=1, **with_server(url, tmp_path))
    assert done.returncode == 0, done.stderr
    calls, state.calls = state.calls, type(state.calls)()
    return tmp_path / "one", calls


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_two_ranks_share_a_server(placement, recipe, server, alone, tmp_path):
    state, url = server
    one, calls = alone
    options = with_server(url, tmp_path, **{"--distributed.placement": placement})
    done = run(recipe, tmp_path / "two", **options)
    assert done.returncode == 0, done.stderr + done.stdout
    same_curves(tmp_path / "two", one)
    assert state.calls["/collective_rpc"] == calls["/collective_rpc"], "one rank hands over for both"
    assert state.calls["/v1/completions"] == calls["/v1/completions"], "and each asks for its own prompts"


def test_what_a_server_refuses_the_main_rank_ends_both(recipe, server, tmp_path):
    state, url = server
    state.always["/pause"] = unavailable
    done = run(recipe, tmp_path / "two", **with_server(url, tmp_path))
    assert done.returncode != 0
    (sentence,) = said(done)
    assert "/pause" in sentence
    assert "status 503" in sentence


def test_sampling_ahead_on_a_server_is_for_one_process(recipe, tmp_path):
    options = with_server("http://127.0.0.1:9", tmp_path, **{"--rollout.max_staleness": 1})
    done = run(recipe, tmp_path / "two", **options)
    (sentence,) = said(done)
    assert "rollout.max_staleness" in sentence


def test_two_ranks_send_one_adapter_at_a_time(recipe, server, tmp_path):
    state, url = server
    options = with_server(url, tmp_path, **{"--lora.rank": 2, "--rollout.sync": "adapter"})
    done = run(recipe, tmp_path / "two", **options)
    assert done.returncode == 0, done.stderr + done.stdout
    assert state.num_reloads == 0
    assert len(state.loaded_adapters) > 1
    assert len({name.split("-")[-3] for name in state.loaded_adapters}) == 1, "of one process"
    assert len(set(state.loaded_adapters)) == len(state.loaded_adapters), "a name of its own for every version"
    assert list(state.adapters) == state.loaded_adapters[-1:], "the one before is unloaded"
    assert [path.name for path in (tmp_path / "sync").iterdir()] == state.loaded_adapters[-1:], "one rank writes"
    sampled = [body["model"] for body in state.bodies if body and "n" in body]
    assert sampled
    assert sampled == sorted(sampled, key=lambda name: int(name.split("-")[-1])), "no rank samples from an older one"

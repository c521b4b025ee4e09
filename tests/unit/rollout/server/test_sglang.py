"""SGLang's dialect: the same completions as any server's, its limit, its seeds, and its refusals."""

import pytest

from heliostat.config import RolloutSection, build_recipe
from heliostat.models import save_model
from heliostat.rollout import (
    DecodeLimits,
    ParityError,
    SampleRequest,
    SamplingSettings,
    Server,
    ServerEngine,
    ServerError,
    SGLang,
    build_engine,
)
from tests.support.fake_server import FakeSGLang, serving
from tests.support.nano import make_nano, make_prompts


@pytest.fixture
def state():
    return FakeSGLang(make_nano())


@pytest.fixture
def make(state, tmp_path, nano):
    with serving(state) as url:

        def made(max_new_tokens=6):
            server = Server(url, timeout_s=20.0, num_retries=3, first_pause_s=0.01)
            limits = DecodeLimits(max_new_tokens)
            return ServerEngine(nano, limits, server, SGLang(), tmp_path / "sync", num_requests=2, max_gap=1e-3)

        yield made


def sample(engine, temperature=0.7, seed=3):
    settings = SamplingSettings(temperature=temperature)
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 3), 4, settings, seed=seed, policy_step=5))


def test_it_samples_from_the_trainers_weights(make, state, nano):
    state.loaded = make_nano(seed=9)
    groups = sample(make())
    assert [len(group.completions) for group in groups] == [4, 4, 4]
    assert state.calls["/update_weights_from_disk"] == 2, "the rehearsal and the weights"
    assert state.calls["/v1/completions"] == 2 + 2 + 3, "two probes a sync, and a request a prompt"
    assert state.calls["/model_info"] > 0
    assert set(state.calls) < set(state.routes(None))
    theirs, ours = state.loaded.model.state_dict(), nano.model.state_dict()
    assert all(theirs[name].equal(ours[name]) for name in ours)


@pytest.mark.slow
def test_under_deterministic_inference_every_completion_has_a_seed_of_its_own(make, state):
    state.deterministic = True
    groups = sample(make())
    assert all(len({one.token_ids for one in group.completions}) > 1 for group in groups)
    seeds = [body["seed"] for body in state.bodies if isinstance(body, dict) and "seed" in body]
    assert len(set(seeds[4:])) == 12, "after the four probes"
    again = sample(make())
    assert [c.token_ids for g in again for c in g.completions] == [c.token_ids for g in groups for c in g.completions]


def test_a_stale_head_is_found(make, state):
    state.stale_head = True
    with pytest.raises(ParityError, match=r"rehearsal.*tied output projection"):
        sample(make())


def test_the_two_reserved_tokens_of_its_context_count(make, state):
    longest = max(len(prompt.context_ids) for prompt in make_prompts(state.loaded, 3))
    state.max_length = longest + 20
    with pytest.raises(ServerError, match=f"at most {longest + 18} tokens.*--context-length"):
        sample(make(max_new_tokens=19))
    assert sample(make(max_new_tokens=18))


def test_another_model_in_a_folder_that_both_see_is_refused(make, state, tmp_path):
    save_model(make_nano(num_layers=3), tmp_path / "deeper")
    state.folder = str(tmp_path / "deeper")
    with pytest.raises(ServerError, match="num_hidden_layers is 3 there and 2 in"):
        sample(make())
    assert state.num_reloads == 0


def test_weights_that_it_cannot_load_end_the_run(make, state):
    said = b'{"success": false, "message": "Failed to update weights"}'
    state.always["/update_weights_from_disk"] = lambda handler, answer: handler.send(400, said)
    with pytest.raises(ServerError, match=r"status 400.*restart the server"):
        sample(make())
    assert state.calls["/update_weights_from_disk"] == 1


def test_the_recipe_chooses_it_and_the_environment_holds_its_key(nano, monkeypatch):
    monkeypatch.setenv("SGLANG_API_KEY", "sk-2")
    section = RolloutSection(engine="sglang", server_url="http://host:30000", sync_dir="s")
    engine = build_engine(nano, DecodeLimits(4), section)
    assert isinstance(engine, ServerEngine)
    assert isinstance(engine.client.dialect, SGLang)
    assert engine.client.server.api_key == "sk-2"
    with pytest.raises(ValueError, match=r"rollout\.engine = 'sglang' needs rollout\.sync_dir"):
        build_recipe({"rollout": {"engine": "sglang", "server_url": "http://host:30000"}})

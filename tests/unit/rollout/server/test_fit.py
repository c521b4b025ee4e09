"""A server that does not fit the run, or is shared with another one: refused before anything is sent or trained."""

import os

import pytest

from heliostat.config import RolloutSection
from heliostat.rollout import (
    DecodeLimits,
    ParityError,
    SampleRequest,
    SamplingSettings,
    Server,
    ServerEngine,
    ServerError,
    Vllm,
    build_engine,
)
from heliostat.rollout.server.vllm import sizes_of
from tests.support.fake_server import FakeServer, serving
from tests.support.nano import make_nano, make_prompts


@pytest.fixture
def state():
    return FakeServer(make_nano())


@pytest.fixture
def make(state, tmp_path, nano):
    with serving(state) as url:

        def made(max_new_tokens=6, max_gap=1e-3):
            server = Server(url, timeout_s=20.0, num_retries=3, first_pause_s=0.01)
            return ServerEngine(
                nano, DecodeLimits(max_new_tokens), server, Vllm(), tmp_path / "sync", num_requests=2, max_gap=max_gap
            )

        yield made


def sample(engine, temperature=1.0):
    settings = SamplingSettings(temperature=temperature)
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 2), 2, settings, seed=3, policy_step=5))


@pytest.mark.parametrize(("key", "value"), [("num_layers", 3), ("hidden_size", 64)])
def test_a_model_of_other_sizes_is_never_sent(make, state, key, value):
    state.loaded = make_nano(**{key: value})
    with pytest.raises(ServerError, match=f"serves another model.*{value} there and.*nothing was sent"):
        sample(make())
    assert state.num_reloads == 0


def test_another_dtype_is_refused_unless_the_bound_allows_it(make, state):
    state.dtype = "torch.bfloat16"
    with pytest.raises(ServerError, match=r"--dtype float32.*max_parity_gap = 0\.5"):
        sample(make())
    assert state.num_reloads == 0
    assert sample(make(max_gap=0.5))


def test_a_shorter_limit_is_refused(make, state):
    state.max_length = 16
    with pytest.raises(
        ServerError, match=r"at most 16 tokens.*would cut.*max_new_tokens = 40 need \d+.*--max-model-len"
    ):
        sample(make(max_new_tokens=40))
    assert state.num_reloads == 0


@pytest.mark.slow
def test_log_probabilities_at_temperature_1_are_refused_at_others(make, state):
    state.logprobs_mode = "raw_logprobs"
    engine = make()
    assert sample(engine)
    with pytest.raises(ServerError, match=r"samples at 0\.7: start it with --logprobs-mode processed_logprobs"):
        sample(engine, temperature=0.7)


def test_a_gap_names_the_cause_that_was_measured(make, state, monkeypatch):
    """A server that calls its raw log-probabilities processed, and one whose rounding is coarse."""
    given = state.completions
    monkeypatch.setattr(state, "completions", lambda body: given(body | {"temperature": 1.0}))
    with pytest.raises(ParityError, match="are those at temperature 1; start vLLM with --logprobs-mode"):
        sample(make(), temperature=0.5)

    def coarse(body):
        answer = given(body)
        for choice in answer["choices"]:
            choice["logprobs"]["token_logprobs"] = [logp - 0.1 for logp in choice["logprobs"]["token_logprobs"]]
        return answer

    monkeypatch.setattr(state, "completions", coarse)
    with pytest.raises(ParityError, match="size of rounding, and it computes in float32 where"):
        sample(make())


def test_a_server_that_failed_to_load_is_broken_for_good(make, state):
    failed = b'{"error": {"message": "Call to collective_rpc method failed"}}'
    state.faults["/collective_rpc"] = [lambda handler, answer: answer(), lambda handler, _: handler.send(500, failed)]
    with pytest.raises(ServerError, match=r"status 500.*is broken from now on.*restart the server"):
        sample(make())
    assert state.calls["/collective_rpc"] == 2, "asked for the model, and told to load once"
    assert state.calls["/resume"] == 1


def test_the_later_of_two_runs_on_one_machine_is_refused(make, state):
    state.version = f"heliostat/{os.uname().nodename}/{os.getppid()}/ab12/7"
    with pytest.raises(ServerError, match=f"in use: process {os.getppid()} of this machine.*a server of its own"):
        sample(make())
    assert state.num_reloads == 0


def test_a_run_that_has_ended_leaves_the_server_to_the_next(make, state):
    state.version = f"heliostat/{os.uname().nodename}/999999999/ab12/7"
    assert sample(make())


def test_a_run_whose_server_was_taken_stops(make, state):
    engine = make()
    sample(engine)
    state.version = "heliostat/elsewhere/12/ab12/7"
    with pytest.raises(ServerError, match=r"weights of another run \(process 12 on elsewhere\)"):
        sample(engine)


def test_a_server_that_is_taken_while_it_samples_is_noticed(make, state, monkeypatch):
    engine = make()
    sample(engine)
    given = state.completions

    def taken(body):
        state.version = "heliostat/elsewhere/12/ab12/7"
        return given(body)

    monkeypatch.setattr(state, "completions", taken)
    with pytest.raises(ServerError, match="completions of this run may come from them"):
        sample(engine)


@pytest.mark.slow
def test_a_server_that_was_started_anew_gets_the_weights_again(make, state):
    engine = make()
    before = sample(engine)
    state.loaded, state.version = make_nano(seed=9), "default"
    again = sample(engine)
    assert state.num_reloads == 4, "the rehearsal and the weights, twice"
    assert [c.token_ids for g in again for c in g.completions] == [c.token_ids for g in before for c in g.completions]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_like_that_of_an_openai_client(end, nano):
    section = RolloutSection(engine="vllm", server_url=f"http://host:8000/proxy{end}", sync_dir="s")
    engine = build_engine(nano, DecodeLimits(4), section)
    assert isinstance(engine, ServerEngine)
    assert engine.client.server.url == "http://host:8000/proxy"


def test_layers_are_counted_over_the_workers_that_hold_them():
    """Two workers of a pipeline, and layers of two kinds."""
    first = "(layers): ModuleList()(\n  (0): OneDecoderLayer(\n  )\n  (1-3): 3 x OtherDecoderLayer()(\n  )\n)"
    second = "(layers): ModuleList()(\n  (0-3): 4 x PPMissingLayer()\n  (4-5): 2 x OtherDecoderLayer()(\n  )\n)"
    assert sizes_of([first, second]) == {"num_hidden_layers": 6}
    assert sizes_of(["NewModel()"]) == {}

"""The vLLM engine against a server with a real model behind it: what it samples, and what it refuses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from heliostat.config import ConfigError, RolloutSection, build_recipe
from heliostat.models import sampler_copy_of, snapshot_weights, with_weights
from heliostat.rollout import (
    DecodeLimits,
    ParityError,
    SampleRequest,
    SamplingSettings,
    SamplingStopped,
    Server,
    ServerEngine,
    ServerError,
    Vllm,
    build_engine,
)
from heliostat.rollout.server.model_tensors import tensors_of
from heliostat.types import StopReason
from tests.support import fake_server
from tests.support.fake_server import FakeServer, edits, serving
from tests.support.nano import make_nano, make_prompts

COMPLETIONS = "/v1/completions"


@pytest.fixture
def state():
    return FakeServer(make_nano())


@pytest.fixture
def make(state, tmp_path, nano):
    with serving(state) as url:

        def made(stop=(), max_new_tokens=6, loaded=nano, **changes):
            server = Server(url, **{"timeout_s": 20.0, "num_retries": 1, "first_pause_s": 0.01, **changes})
            limits = DecodeLimits(max_new_tokens, stop=stop)
            return ServerEngine(loaded, limits, server, Vllm(), tmp_path / "sync", num_requests=2, max_gap=1e-3)

        yield made


def sample(engine, num=3, group_size=4, temperature=1.0, seed=3):
    prompts = make_prompts(engine.loaded, num)
    return engine.sample(
        SampleRequest(prompts, group_size, SamplingSettings(temperature=temperature), seed=seed, policy_step=5)
    )


def move(loaded, scale=0.5):
    """A change as an optimizer makes it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_trainers_at_the_sampling_temperature(make, nano, temperature):
    groups = sample(make(), temperature=temperature)
    assert [len(group.completions) for group in groups] == [4, 4, 4]
    assert {group.policy_step for group in groups} == {5}
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([group.prompt.context_ids + completion.token_ids])
            with torch.no_grad():
                hidden = nano.head.hidden(input_ids=ids, use_cache=False)
                logp = torch.log_softmax(nano.head.logits(hidden[0]) / temperature, dim=-1)
            start = len(group.prompt.context_ids) - 1
            own = [float(logp[start + t, token]) for t, token in enumerate(completion.token_ids)]
            assert completion.logp_gen == pytest.approx(own, abs=1e-4)
            assert completion.entropy == pytest.approx(-completion.logp_gen)


@pytest.mark.slow
def test_every_group_is_announced_once(make):
    told = {}
    engine = make()
    prompts = make_prompts(engine.loaded, 4)
    groups = engine.sample(
        SampleRequest(prompts, 2, SamplingSettings(), seed=1, policy_step=0, on_group=told.__setitem__)
    )
    assert sorted(told) == [0, 1, 2, 3]
    assert all(told[index] is group for index, group in enumerate(groups))


@pytest.mark.slow
def test_why_a_completion_ended(make):
    reasons = [c for group in sample(make(), num=5, group_size=8) for c in group.completions]
    for completion in reasons:
        ended = completion.token_ids[-1] in make().loaded.eos_ids
        assert completion.stop_reason is (StopReason.EOS if ended else StopReason.MAX_TOKENS)
        assert ended or len(completion.token_ids) == 6
    assert {c.stop_reason for c in reasons} == {StopReason.EOS, StopReason.MAX_TOKENS}


@pytest.mark.slow
def test_a_stop_string_ends_the_text_and_not_the_tokens(make):
    ended = [
        completion
        for group in sample(make(stop=("1", "2", "3", "e", "a")), num=5, group_size=8)
        for completion in group.completions
        if completion.stop_reason is StopReason.STOP_STRING
    ]
    assert ended
    assert not any(set("123ea") & set(completion.text) for completion in ended)


@pytest.mark.slow
def test_the_mean_of_the_estimated_entropies_is_the_entropy(make, nano):
    groups = sample(make(max_new_tokens=1), num=1, group_size=4000)
    estimated = np.array([c.entropy[0] for c in groups[0].completions])
    ids = torch.tensor([groups[0].prompt.context_ids])
    with torch.no_grad():
        logits = nano.head.logits(nano.head.hidden(input_ids=ids, use_cache=False)[0, -1])
    exact = float(torch.distributions.Categorical(logits=logits).entropy())
    assert abs(estimated.mean() - exact) < 5 * estimated.std() / np.sqrt(len(estimated))


@pytest.mark.slow
def test_samples_come_from_the_weights_of_now(make, state, nano):
    engine = make()
    sample(engine)
    sample(engine)
    assert state.num_reloads == 2  # the rehearsal and the weights; nothing new for the second sample
    move(nano)
    sample(engine)
    assert state.num_reloads == 3
    assert state.calls["/reset_prefix_cache"] == state.calls["/pause"] == state.calls["/resume"] == 3


@pytest.mark.slow
def test_the_rehearsal_leaves_the_weights_bit_for_bit(make, nano):
    before = [parameter.detach().clone() for parameter in nano.model.parameters()]
    sample(make())
    assert all(torch.equal(a, b) for a, b in zip(before, nano.model.parameters(), strict=True))


def test_a_stale_tied_head_is_found_before_anything_is_trained(make, state, nano):
    assert nano.model.lm_head.weight is nano.model.model.embed_tokens.weight
    state.stale_head = True
    with pytest.raises(ParityError, match=r"rehearsal.*tied output projection"):
        sample(make())


@pytest.mark.slow
def test_a_head_that_goes_stale_later_is_found_at_that_hand_over(make, state, nano):
    engine = make()
    sample(engine)
    state.stale_head = True
    move(nano)
    with pytest.raises(ParityError, match="after its weights were updated"):
        sample(engine)


def test_a_server_that_ignores_new_weights_is_found(make, state):
    state.ignores_reload = True
    with pytest.raises(ParityError, match="rehearsal"):
        sample(make())


def test_a_prefix_cache_that_stays_is_an_error_and_the_server_goes_on(make, state):
    state.keeps_cache = True
    with pytest.raises(ServerError, match="prefix cache"):
        sample(make())
    assert state.calls["/resume"] == 1


def test_a_server_without_update_routes_is_told_how_to_start(make, state):
    state.always["/pause"] = lambda handler, answer: handler.send(404, b'{"detail": "Not Found"}')
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1"):
        sample(make())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "truncated", "web_page", "unavailable"])
def test_a_fault_in_the_middle_changes_nothing(make, state, fault):
    expected = sample(make())
    state.faults[COMPLETIONS] = [getattr(fake_server, fault)]
    again = sample(make())
    assert [c.token_ids for g in again for c in g.completions] == [c.token_ids for g in expected for c in g.completions]


def drop_one(answer):
    answer["choices"].pop()


def one_token_more(answer):
    answer["choices"][0]["token_ids"].append(5)


def one_log_prob_less(answer):
    answer["choices"][0]["logprobs"]["token_logprobs"].pop()


def too_long(answer):
    answer["choices"][0]["token_ids"] = [5] * 99
    answer["choices"][0]["logprobs"]["token_logprobs"] = [-1.0] * 99


def no_ids(answer):
    del answer["choices"][0]["token_ids"]


def foreign_ids(answer):
    answer["choices"][0]["token_ids"][0] = 10**6


def not_a_number(answer):
    answer["choices"][0]["logprobs"]["token_logprobs"][0] = float("nan")


def aborted(answer):
    answer["choices"][0].update(token_ids=[40], finish_reason="abort")
    answer["choices"][0]["logprobs"]["token_logprobs"] = [-1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [drop_one, one_token_more, one_log_prob_less, too_long, no_ids, foreign_ids, not_a_number, aborted]
)
def test_an_answer_that_cannot_be_right_is_refused(make, state, change):
    engine = make()
    sample(engine)
    state.always[COMPLETIONS] = edits(change)
    with pytest.raises(ServerError, match="answered with"):
        sample(engine)


@pytest.mark.slow
def test_counts_are_the_in_process_engines(make, nano):
    engine = make()
    groups = sample(engine)
    counts = engine.take_counts()
    assert counts.prefills == 3
    assert counts.prompt_tokens == sum(len(group.prompt.context_ids) for group in groups)
    assert counts.decoded_rows == sum(len(c.token_ids) - 1 for g in groups for c in g.completions)
    assert engine.take_counts().prefills == 0


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("server_url", {"engine": "vllm", "sync_dir": "s"}),
        ("server_url", {"engine": "vllm", "sync_dir": "s", "server_url": "host:8000"}),
        ("sync_dir", {"engine": "vllm", "server_url": "http://host:8000"}),
        ("VLLM_API_KEY", {"engine": "vllm", "server_url": "http://me:secret@host:8000", "sync_dir": "s"}),
        ("only used with rollout.engine", {"server_url": "http://host:8000"}),
        ("only used with rollout.engine", {"server_retries": 1}),
        ("num_workers", {"engine": "vllm", "server_url": "http://host", "sync_dir": "s", "num_workers": 2}),
    ],
)
def test_settings_that_cannot_work_are_refused(words, changes):
    with pytest.raises(ConfigError, match=words) as error:
        build_recipe({"rollout": changes})
    assert "secret" not in str(error.value)


def test_the_recipe_chooses_the_engine_and_the_environment_holds_the_key(nano, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    section = RolloutSection(engine="vllm", server_url="http://host:8000/", sync_dir="s")
    engine = build_engine(nano, DecodeLimits(4), section)
    assert isinstance(engine, ServerEngine)
    assert engine.client.server.api_key == "sk-1"
    assert engine.client.server.url == "http://host:8000"
    assert "sk-1" not in section.model_dump_json()


@pytest.mark.slow
def test_engines_on_one_server_each_sample_from_their_own_weights(make, state, nano):
    engine = make()
    twin, kept = sampler_copy_of(nano), snapshot_weights(nano)
    aside = engine.clone_for(twin)
    with with_weights(twin, kept):
        then = sample(aside)
    move(nano)
    now = sample(engine)
    with with_weights(twin, kept):
        again = sample(aside)
    assert state.num_reloads == 4  # rehearsed once; then theirs, ours, theirs
    for old, new, other in zip(then, again, now, strict=True):
        assert [c.token_ids for c in old.completions] == [c.token_ids for c in new.completions]
        assert [c.token_ids for c in old.completions] != [c.token_ids for c in other.completions]


@pytest.mark.slow
def test_the_rehearsal_of_a_twin_leaves_frozen_weights_alone(make, nano, state):
    nano.model.requires_grad_(False)
    twin = sampler_copy_of(nano)
    before = nano.head.projection.weight.detach().clone()
    seen = []
    engine = make().clone_for(twin)

    def look(handler, answer):
        seen.append(nano.head.projection.weight.detach().clone())
        return answer()

    state.faults["/collective_rpc"] = [lambda handler, answer: answer(), look, look]  # the first asks for the model
    sample(engine)
    assert len(seen) == 2
    assert all(torch.equal(weight, before) for weight in seen)


@pytest.mark.slow
def test_a_hand_over_that_broke_off_is_made_again(make, state, nano):
    """The server may have the new weights although the trainer has gone back to the old ones."""
    engine = make(num_retries=0)
    sample(engine)
    kept = snapshot_weights(nano)
    move(nano)
    state.faults[COMPLETIONS] = [fake_server.dies]  # the probe of the new weights
    with pytest.raises(ServerError):
        sample(engine)
    for parameter, weight in zip(nano.model.parameters(), kept, strict=True):
        parameter.data.copy_(weight)
    before = state.num_reloads
    sample(engine)
    assert state.num_reloads == before + 1


@pytest.mark.slow
def test_a_stopped_engine_ends_without_waiting_for_the_server(make, state):
    engine = make()
    sample(engine)
    arrived = threading.Event()
    state.always[COMPLETIONS] = lambda handler, answer: (arrived.set(), fake_server.hangs(handler, answer))[1]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(sample, engine)
        assert arrived.wait(10)
        engine.stop()
        with pytest.raises(SamplingStopped):
            ended.result(timeout=10)
    assert not state.released.is_set()
    with pytest.raises(SamplingStopped):
        sample(engine)


def test_what_is_sent_is_what_the_models_state_holds():
    model = make_nano().model
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("derived", torch.ones(2), persistent=False)
    ours, theirs = tensors_of(model), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs)

"""A server that sleeps while the trainer trains: the order of requests, and what every wake-up finds."""

import pytest
import torch

from heliostat.config import ConfigError, LoraSection, ModelSection, build_recipe
from heliostat.models import load_model
from heliostat.models.lora import add_adapters
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, Server, ServerEngine, ServerError, Vllm
from heliostat.rollout.server.vllm_sleep import VllmSleep
from tests.support.fake_server import FakeServer, Refused, serving
from tests.support.nano import NANO, make_prompts


def plain():
    loaded = load_model(ModelSection(path="tiny", settings={**NANO, "init_std": 0.3}), 0)
    loaded.model.eval()
    return loaded


@pytest.fixture
def loaded():
    return plain()


@pytest.fixture
def state():
    return FakeServer(plain())


@pytest.fixture
def make(state, tmp_path, loaded):
    with serving(state) as url:

        def made(level, parts="auto", timeout_s=20.0):
            server = Server(url, timeout_s=timeout_s, num_retries=0)
            sleep = VllmSleep(level) if level else None
            limits = DecodeLimits(6)
            return ServerEngine(
                loaded, limits, server, Vllm(), tmp_path / "sync", 2, max_gap=1e-3, parts=parts, sleep=sleep
            )

        yield made


def sample(engine):
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 2), 3, SamplingSettings(), seed=3, policy_step=5))


def ids(groups):
    return [completion.token_ids for group in groups for completion in group.completions]


def train(loaded):
    """A change as an optimizer makes it, of every weight that it trains."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def told(state, monkeypatch):
    """The routes that change the server, in the order in which they were asked."""
    routes, answer = [], state.answer

    def noted(path, body):
        if path.startswith(("/sleep", "/wake_up", "/pause", "/resume", "/collective_rpc", "/update_weight_version")):
            routes.append(path + (" inspect" if "inspection" in str(body) else ""))
        return answer(path, body)

    monkeypatch.setattr(state, "answer", noted)
    return routes


@pytest.mark.parametrize("level", [1, 2])
def test_it_takes_new_weights_before_it_gets_its_caches_back(make, state, loaded, told, level):
    engine = make(level)
    sample(engine)
    told.clear()
    engine.rest()
    engine.rest()  # for example before a step that was skipped
    assert state.asleep == {"weights", "kv_cache"}
    train(loaded)
    sample(engine)
    assert told == [
        f"/sleep?level={level}",
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/update_weight_version",
        "/wake_up?tags=kv_cache",
    ]


@pytest.mark.parametrize(("level", "num_reloads"), [(1, 2), (2, 3)])
def test_unchanged_weights_are_sent_again_only_where_sleep_dropped_them(make, state, level, num_reloads):
    engine = make(level)
    before = sample(engine)
    engine.rest()
    assert ids(sample(engine)) == ids(before)
    assert ids(sample(engine)) == ids(before), "an evaluation without an update between"
    assert state.num_reloads == num_reloads


@pytest.mark.parametrize(("level", "later"), [(1, 1), (2, 2), (2, 0)])
def test_a_server_that_a_killed_run_left_asleep_is_woken(make, state, level, later):
    killed = make(level)
    before = sample(killed)
    killed.rest()
    assert ids(sample(make(later))) == ids(before)
    assert not state.asleep
    assert not state.is_paused


def test_a_server_that_a_killed_run_left_paused_is_resumed(make, state):
    before = sample(make(0))
    state.pause()
    assert ids(sample(make(0))) == ids(before)
    assert not state.is_paused


def test_before_the_first_sampling_it_sleeps_too(make, state, told):
    engine = make(2)
    engine.rest()
    assert told == ["/collective_rpc inspect", "/sleep?level=2"]
    assert len(sample(engine)) == 2


def test_a_request_to_a_sleeping_server_waits(make, state):
    engine = make(1, timeout_s=0.3)
    sample(engine)
    engine.rest()
    state.wake_up = lambda tag: {"status": "awake", "tags": None}  # it says so, and sleeps on
    with pytest.raises(ServerError, match=r"the answer was not complete after 0\.3 s"):
        sample(engine)


def test_a_server_without_sleep_mode_is_refused_before_anything_is_sent(make, state):
    state.can_sleep = False
    for first in (ServerEngine.rest, sample):
        with pytest.raises(ServerError, match=r"sleep_level = 1\): start it with --enable-sleep-mode"):
            first(make(1))
    assert state.num_reloads == 0
    assert not state.asleep
    assert len(sample(make(0))) == 2, "an awake one needs no such mode"


def test_memory_that_the_trainer_still_holds_is_named(make, state):
    engine = make(1)
    sample(engine)
    engine.rest()

    def out_of_memory(tag):
        raise Refused(500, b"CUDA out of memory")

    state.wake_up = out_of_memory
    with pytest.raises(ServerError, match="smaller --gpu-memory-utilization"):
        sample(engine)


def test_another_runs_server_is_not_put_to_sleep(make, state):
    engine = make(1)
    sample(engine)
    state.version = "heliostat/elsewhere/1/00aa/7"
    with pytest.raises(ServerError, match="weights of another run"):
        engine.rest()
    assert not state.asleep


@pytest.mark.slow
@pytest.mark.parametrize(("level", "num_reloads", "num_adapters"), [(1, 0, 4), (2, 4, 0)])
def test_an_adapter_stands_on_weights_that_come_back_and_not_on_dropped_ones(
    make, state, loaded, level, num_reloads, num_adapters
):
    add_adapters(loaded.model, LoraSection(rank=2), seed=1)
    loaded.model.eval()
    engine = make(level)
    for _ in range(2):
        sample(engine)
        engine.rest()
        train(loaded)
    sample(engine)
    assert state.num_reloads == num_reloads
    assert len(state.loaded_adapters) == num_adapters


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"engine": "sglang"}, "SGLang does not tell whether its memory is released"),
        ({"max_staleness": 1}, r"rollout\.max_staleness = 1 exclude each other.*cannot sample while"),
        ({"sync": "adapter", "sleep_level": 2}, "drops the server's weights, on which an adapter would stand"),
        ({"sleep_level": 3}, r"rollout\.sleep_level"),
        ({"engine": "torch", "server_url": "", "sync_dir": ""}, r"rollout\.sleep_level is only used with"),
    ],
)
def test_a_recipe_in_which_nobody_could_sample_is_refused(settings, reason):
    rollout = {"engine": "vllm", "server_url": "http://host:1", "sync_dir": "s", "sleep_level": 1}
    with pytest.raises(ConfigError, match=reason):
        build_recipe({"rollout": rollout | settings, "lora": {"rank": 2}})

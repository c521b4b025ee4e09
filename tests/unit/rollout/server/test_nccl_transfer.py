"""Weights over NCCL, with a stand-in for the group: the requests, their order, and what ends them."""

import pytest
import torch

from heliostat.config import ConfigError, build_recipe
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, Server, ServerEngine, ServerError, Vllm
from heliostat.rollout.server.nccl_transfer import NcclTransfer
from heliostat.train.model_bundle import require_packages
from tests.support.fake_server import FakeServer, dies, serving
from tests.support.nano import make_nano, make_prompts

RECIPE = {"engine": "vllm", "server_url": "http://host:1", "sync": "nccl"}


@pytest.fixture
def state():
    return FakeServer(make_nano())


@pytest.fixture
def make(state, tmp_path):
    with serving(state) as url:

        def made(loaded):
            server = Server(url, timeout_s=20.0, num_retries=2, first_pause_s=0.01)
            transfer = NcclTransfer(state.transfer.open_group)
            return ServerEngine(loaded, DecodeLimits(6), server, Vllm(), tmp_path / "sync", 2, 1e-3, transfer=transfer)

        yield made


def sample(engine):
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 2), 2, SamplingSettings(), seed=3, policy_step=5))


def test_weights_arrive_without_a_file(make, state, nano, tmp_path, monkeypatch):
    asked, answer = [], state.answer
    monkeypatch.setattr(state, "answer", lambda path, body: asked.append(path) or answer(path, body))
    engine = make(nano)
    sample(engine)
    assert state.transfer.members["rank_offset"] == 1
    assert state.transfer.members["world_size"] == 3, "the trainer and the server's two workers"
    (group,) = state.transfer.groups
    assert group.told == (state.transfer.members["master_address"], state.transfer.members["master_port"], 3)
    with torch.no_grad():
        for parameter in nano.model.parameters():
            parameter.add_(0.05 * parameter.std())
    asked.clear()
    sample(engine)
    changes = [path for path in asked if not path.startswith(("/v1", "/weight_info", "/is_sleeping"))]
    assert changes == [
        "/pause?mode=wait",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/resume",
    ]
    for (_, ours), (_, theirs) in zip(
        nano.model.named_parameters(), state.loaded.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert state.num_reloads == 0
    assert not (tmp_path / "sync").exists()


def test_the_group_that_a_killed_run_left_is_closed_first(make, state, nano):
    sample(make(nano))
    state.version = "default"  # the process is gone, and this one is another
    sample(make(nano))
    assert len(state.transfer.groups) == 2


def test_a_server_that_was_not_started_for_it_is_named(make, state, nano):
    state.transfer.is_configured = False
    state.transfer.both_are_there.wait = lambda timeout: None
    with pytest.raises(ServerError, match=r'not configured.*--weight-transfer-config .\{"backend": "nccl"\}'):
        sample(make(nano))


@pytest.mark.parametrize("route", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
def test_a_failed_transfer_ends_the_group_and_is_not_tried_again(make, state, nano, route):
    engine = make(nano)
    sample(engine)
    with torch.no_grad():
        nano.model.lm_head.weight.mul_(1.01)
    state.faults[route] = [dies]
    before = state.calls[route]
    with pytest.raises(ServerError, match=f"{route}.*may be broken from now on"):
        sample(engine)
    assert state.calls[route] == before + 1
    assert not state.transfer.groups[-1].is_open
    assert state.calls["/resume"] == state.calls["/pause"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"engine": "sglang"}, "only written for rollout.engine = 'vllm'"),
        ({"sync_dir": "s"}, "sync_dir has no effect"),
        ({"sleep_level": 1}, "needs a GPU for the trainer and others for the server"),
    ],
)
def test_a_recipe_in_which_it_has_no_sense_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        build_recipe({"rollout": RECIPE | settings})


@pytest.mark.parametrize(("has_gpu", "reason"), [(False, "this trainer has no GPU"), (True, "needs the package vllm")])
def test_a_machine_that_cannot_send_is_refused_before_anything_is_loaded(monkeypatch, has_gpu, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    with pytest.raises(ConfigError, match=reason):
        require_packages(build_recipe({"rollout": RECIPE}))

"""Devices: a CPU or a CUDA GPU; any other is refused in one sentence before anything is read."""

import os

import pytest
import torch

from heliostat.config import ConfigError, ModelSection, RunSection, build_recipe
from heliostat.models import load_model
from heliostat.train.distributed.ranks import start_runtime


@pytest.mark.parametrize("device", ["mps", "mps:0", "xpu"])
def test_a_device_that_nothing_ran_on_is_refused(device):
    with pytest.raises(ConfigError, match=rf"^Heliostat has not been run on device '{device}'; leave the device out"):
        load_model(ModelSection(path="/no/such/folder"), 0, torch.device(device))


@pytest.fixture
def like_a_mac(monkeypatch):
    """A machine with Apple's GPU and without the system calls of Linux for the cores of a process."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    yield
    torch.set_num_threads(threads)


def test_runs_on_a_mac_take_its_cpu_and_all_cores(like_a_mac):
    assert start_runtime(RunSection()).device == torch.device("cpu")
    assert torch.get_num_threads() == 3
    small = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
    model = load_model(ModelSection(settings=small), 0).model
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("key", ["run.device", "model.device"])
def test_a_recipe_cannot_ask_for_one(key):
    with pytest.raises(ConfigError, match=r"a recipe names no device; .* never Apple's MPS"):
        build_recipe({key: "mps"})

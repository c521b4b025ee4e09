"""Models that several threads may run at once, and those that they may not."""

import pytest
import torch

from heliostat.models.concurrency import is_watched, runs_in_threads
from tests.support.checkpoints import load_float32, write_checkpoint
from tests.support.nano import make_nano


def test_a_plain_model_runs_in_threads_and_a_watched_one_does_not():
    plain, watched = make_nano(eos_bias=0.0).model, make_nano().model
    assert runs_in_threads(plain)
    assert not is_watched(plain)
    assert is_watched(watched)
    assert not runs_in_threads(watched)


@pytest.mark.parametrize(
    "register",
    [
        lambda model: model.lm_head.register_forward_pre_hook(lambda module, args: None),
        lambda model: model.lm_head.register_full_backward_hook(lambda module, before, after: None),
        lambda model: model.lm_head.weight.register_hook(lambda gradient: None),
    ],
)
def test_every_kind_of_hook_is_seen(register):
    model = make_nano(eos_bias=0.0).model
    handle = register(model)
    assert is_watched(model)
    handle.remove()
    assert not is_watched(model)


def test_frequencies_for_the_length_at_hand_are_not_shared(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = load_float32(write_checkpoint(tmp_path, "llama", rope_parameters=scaling)).model
    assert not is_watched(model)
    assert not runs_in_threads(model)
    assert isinstance(model.model.rotary_emb.inv_freq, torch.Tensor)

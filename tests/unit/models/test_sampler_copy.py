"""A twin computes what its model computed at the moment its weights were copied, and touches nothing of the model."""

import threading

import pytest
import torch

from heliostat.config import LoraSection
from heliostat.models import decode, sampler_copy_of, snapshot_weights, with_weights
from heliostat.models.lora import add_adapters
from tests.support.nano import make_nano

IDS = torch.arange(40, 60)[None]


def logits(loaded):
    with torch.no_grad():
        return loaded.head.logits(loaded.head.hidden(input_ids=IDS, use_cache=False))


def move(loaded):
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * parameter.std())


def test_with_the_weights_of_now_it_is_the_model_bit_for_bit(nano):
    twin = sampler_copy_of(nano)  # the forward hook that gives nano a taste for stopping comes along
    with with_weights(twin, snapshot_weights(nano)):
        assert torch.equal(logits(twin), logits(nano))


def test_with_weights_of_then_it_is_the_model_of_then(nano):
    twin, kept, then = sampler_copy_of(nano), snapshot_weights(nano), logits(nano)
    move(nano)
    now = logits(nano)
    with with_weights(twin, kept):
        assert torch.equal(logits(twin), then)
    assert torch.equal(logits(nano), now)
    assert not torch.equal(now, then)


def test_it_owns_no_memory_when_it_holds_nothing(nano):
    twin = sampler_copy_of(nano)
    own = {parameter.data_ptr() for parameter in nano.model.parameters()}
    with with_weights(twin, snapshot_weights(nano)):
        assert not own & {parameter.data_ptr() for parameter in twin.model.parameters()}
    assert own == {parameter.data_ptr() for parameter in twin.model.parameters()}
    assert not any(parameter.requires_grad for parameter in twin.model.parameters())


def test_tied_weights_stay_tied_and_are_copied_once(nano):
    twin = sampler_copy_of(nano)
    names = [name for name, _ in nano.model.named_parameters()]
    assert [name for name, _ in twin.model.named_parameters()] == names
    assert len(snapshot_weights(nano)) == len(names)
    tied = nano.head.projection.weight is nano.model.get_input_embeddings().weight
    assert (twin.head.projection.weight is twin.model.get_input_embeddings().weight) == tied


def test_both_halves_are_the_twins_own(nano):
    twin = sampler_copy_of(nano)
    assert twin.head.backbone is twin.model.base_model
    assert twin.head.projection is twin.model.get_output_embeddings()
    assert twin.model.config is not nano.model.config
    assert decode(twin, [40, 41]) == decode(nano, [40, 41])
    assert twin.tokenizer is not nano.tokenizer


def test_frozen_weights_below_adapters_are_never_copied():
    loaded = make_nano()
    add_adapters(loaded.model, LoraSection(rank=2), seed=0)
    twin, kept, then = sampler_copy_of(loaded), snapshot_weights(loaded), logits(loaded)
    assert sum(weight.numel() for weight in kept) < 0.2 * loaded.num_parameters
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    frozen = {p.data_ptr() for p in loaded.model.parameters() if not p.requires_grad}
    with with_weights(twin, kept):
        assert torch.equal(logits(twin), then)
        assert frozen <= {parameter.data_ptr() for parameter in twin.model.parameters()}
    assert not torch.equal(logits(loaded), then)


def test_a_backward_pass_meanwhile_is_undisturbed(nano):
    twin, kept = sampler_copy_of(nano), snapshot_weights(nano)
    loss = nano.model(input_ids=IDS).logits.square().mean()

    def sample():
        with with_weights(twin, kept):
            logits(twin)

    thread = threading.Thread(target=sample)
    thread.start()
    loss.backward()
    thread.join()
    alone = make_nano()
    alone.model(input_ids=IDS).logits.square().mean().backward()
    for ours, theirs in zip(nano.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_weights_of_another_model_are_refused(nano):
    with pytest.raises(ValueError, match="zip"), with_weights(sampler_copy_of(nano), snapshot_weights(nano)[:-1]):
        pass

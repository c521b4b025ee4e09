"""Fused layers compute what the model computes, with the weights it has now, or are not used."""

import dataclasses

import numpy as np
import pytest
import torch

from heliostat.config import LoraSection
from heliostat.models.lora import add_adapters
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.fused import fused_layers
from tests.support.checkpoints import load_float32, write_checkpoint
from tests.support.nano import make_nano, make_prompts


def completions(engine, prompts, group_size=4):
    groups = engine.sample(SampleRequest(prompts, group_size, SamplingSettings(temperature=1.3), seed=7, policy_step=0))
    return [completion for group in groups for completion in group.completions]


@pytest.mark.slow
@pytest.mark.parametrize("limits", [DecodeLimits(12), DecodeLimits(12, max_rows=5, min_freed=0.0)])
@pytest.mark.parametrize("shape", [{}, {"num_heads": 4, "num_kv_heads": 2}], ids=["mqa", "gqa"])
def test_same_tokens_and_numbers_also_after_the_weights_have_moved(shape, limits):
    loaded = make_nano(**shape)
    prompts = make_prompts(loaded, 9)
    together, apart = (TorchEngine(loaded, limits, fused_layers=switch) for switch in (True, False))
    assert together.fused is not None
    assert apart.fused is None
    for _ in range(2):
        for one, two in zip(completions(together, prompts), completions(apart, prompts), strict=True):
            assert one.token_ids == two.token_ids
            np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=1e-5)
        assert together.take_counts() == apart.take_counts()
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.data.mul_(1.05)  # in place, as an optimizer does


def test_bfloat16_is_rounded_as_often_as_by_the_model():
    """Bit for bit: the model's own layers with the same shared prompts, which round after every step."""
    loaded = make_nano(num_heads=4, num_kv_heads=2)
    loaded.model.bfloat16()
    prompts = make_prompts(loaded, 5)
    together, apart = (TorchEngine(loaded, DecodeLimits(12), fused_layers=switch) for switch in (True, False))
    assert together.fused is not None
    for one, two in zip(completions(together, prompts), completions(apart, prompts), strict=True):
        assert one.token_ids == two.token_ids
        assert one.logp_gen.tolist() == two.logp_gen.tolist()


def test_layers_that_were_replaced_since_are_not_sampled_without():
    loaded = make_nano()
    engine = TorchEngine(loaded, DecodeLimits(4))
    assert engine.fused is not None
    add_adapters(loaded.model, LoraSection(rank=2), 0)
    with pytest.raises(RuntimeError, match="add adapters first"):
        completions(engine, make_prompts(loaded, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "fits"), [("llama", True), ("qwen2", True), ("gpt2", False), ("gemma2", False)])
def test_families(family, fits, tmp_path):
    loaded = load_float32(write_checkpoint(tmp_path, family))
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    assert (fused_layers(loaded, reorders=True) is not None) == fits


def test_other_layers_and_other_numbers_are_refused(monkeypatch):
    loaded = make_nano()
    assert fused_layers(loaded, reorders=True) is not None
    attention = loaded.model.model.layers[1].self_attn
    monkeypatch.setattr(attention, "scaling", 0.1)  # the shape fits, the numbers do not
    assert fused_layers(loaded, reorders=True) is None
    monkeypatch.undo()

    class Adapted(torch.nn.Linear):
        pass

    attention.q_proj.__class__ = Adapted
    assert fused_layers(loaded, reorders=True) is None
    assert (
        fused_layers(
            dataclasses.replace(loaded, head=dataclasses.replace(loaded.head, exact_split=False)), reorders=True
        )
        is None
    )

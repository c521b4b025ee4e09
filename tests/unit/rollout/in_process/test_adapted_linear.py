"""Adapters in decoding: merged in float32, beside the weights in bfloat16, or left to the model."""

import numpy as np
import pytest
import torch

from heliostat.config import LoraSection
from heliostat.models import sampler_copy_of
from heliostat.models.lora import add_adapters
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process import fused_linear
from heliostat.rollout.in_process.adapted_linear import JoinedAdapters, adapter_of, can_join, is_linear_map, merges
from heliostat.rollout.in_process.fused_linear import FusedLinear, linear_modules
from tests.support.checkpoints import load_float32, write_checkpoint
from tests.support.nano import make_nano, make_prompts

RANK = 3


def fill(model: torch.nn.Module) -> None:
    """Give adapters that have learned nothing a change of the weights' own size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # larger ones make attention choose between keys, and rounding decide
                parameter.normal_(std=0.1)


def adapted(dtype: torch.dtype = torch.float32, **section):
    loaded = make_nano(num_heads=4, num_kv_heads=2)
    loaded.model.to(dtype)
    add_adapters(loaded.model, LoraSection(rank=RANK, **section), 0)
    fill(loaded.model)
    return loaded


def completions(engine, prompts, group_size=4):
    groups = engine.sample(SampleRequest(prompts, group_size, SamplingSettings(temperature=1.3), seed=7, policy_step=0))
    return [completion for group in groups for completion in group.completions]


def attention_maps(loaded):
    attention = loaded.model.get_submodule("model.layers.0.self_attn")
    return [attention.q_proj, attention.k_proj, attention.v_proj]


@pytest.mark.parametrize("layers", [[], ["q_proj", "v_proj"], ["down_proj"]], ids=str)
@pytest.mark.parametrize("settings", [{}, {"fused_layers": False}, {"shared_prompt": False}], ids=str)
def test_adapters_decode_as_the_models_own_modules_also_after_they_have_moved(layers, settings):
    loaded = adapted(layers=layers)
    prompts = make_prompts(loaded, 5)
    fast = TorchEngine(loaded, DecodeLimits(8), **settings)
    plain = TorchEngine(loaded, DecodeLimits(8), shared_prompt=False, fused_layers=False, reorder_weights=False)
    assert (fast.fused is not None) == (settings == {})
    for _ in range(2):
        for one, two in zip(completions(fast, prompts), completions(plain, prompts), strict=True):
            assert one.token_ids == two.token_ids
            np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=2e-5)
        fill(loaded.model)


@pytest.mark.parametrize("layers", [[], ["q_proj", "v_proj"]], ids=str)
def test_bfloat16_rounds_as_the_models_own_modules_do(layers):
    loaded = adapted(torch.bfloat16, layers=layers)
    prompts = make_prompts(loaded, 5)
    together, apart = (TorchEngine(loaded, DecodeLimits(8), fused_layers=switch) for switch in (True, False))
    assert together.fused is not None
    for one, two in zip(completions(together, prompts), completions(apart, prompts), strict=True):
        assert one.token_ids == two.token_ids
        np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=2e-3)


@pytest.mark.parametrize("layers", [[], ["k_proj"], ["q_proj", "v_proj"]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_product_is_several_adapted_maps(dtype, layers):
    maps = attention_maps(adapted(dtype, layers=layers))
    product = FusedLinear(*maps)
    x, residual = torch.randn(6, 32).to(dtype), torch.randn(6, 64).to(dtype)
    with torch.inference_mode():
        expected = torch.cat([each(x) for each in maps], dim=-1)
        tolerance = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * float(expected.abs().max())}
        product.reorder()
        torch.testing.assert_close(product(x), expected, **tolerance)
        torch.testing.assert_close(product.onto(residual, x), residual + expected, **tolerance)
        fill(maps[0])
        torch.testing.assert_close(product(x), expected, **tolerance)  # copies are of the weights at hand
        product.drop()
        torch.testing.assert_close(product(x), torch.cat([each(x) for each in maps], dim=-1))


def test_an_update_too_small_for_bfloat16_weights_is_sampled_with():
    """A change below the weight's last place, which a merged weight would lose, moves the output."""
    loaded = adapted(torch.bfloat16, layers=["q_proj"])
    map_ = attention_maps(loaded)[0]
    with torch.no_grad():
        map_.base_layer.weight.fill_(1.0)
        map_.lora_A["default"].weight.zero_()[:, 0] = 1.0
        map_.lora_B["default"].weight.fill_(1e-4)
    product, x = FusedLinear(map_), torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0], x[0, 1] = 1.0, -1.0  # the weights' own part is 0
    with torch.inference_mode():
        product.reorder()
        assert not map_.base_layer(x).any()
        assert torch.equal(product(x), map_(x))
        assert product(x).all()


def test_float32_adapters_of_bfloat16_weights_stay_in_float32():
    map_ = attention_maps(adapted(torch.bfloat16))[0]
    map_.lora_A.float(), map_.lora_B.float()
    product, x = FusedLinear(map_), torch.randn(4, 32).bfloat16()
    with torch.inference_mode():
        product.reorder()
        assert product(x).dtype == torch.bfloat16
        assert torch.equal(product(x), map_(x))
        assert product.agrees()


def test_disabled_adapters_are_not_merged():
    loaded = adapted(layers=["q_proj"])
    map_ = attention_maps(loaded)[0]
    product, x = FusedLinear(map_), torch.randn(2, 32)
    map_.enable_adapters(False)
    with torch.inference_mode():
        product.reorder()
        assert adapter_of(map_) is None
        torch.testing.assert_close(product(x), map_.base_layer(x))


def test_limits_of_joined_adapters():
    plain = torch.nn.Linear(4, 3)
    assert JoinedAdapters.of([plain, plain]) is None
    q, k, _ = attention_maps(adapted(layers=["q_proj"]))
    joined = JoinedAdapters.of([k, q])
    assert joined is not None
    change = joined(torch.randn(2, 32))
    assert torch.equal(change[:, : k.out_features], torch.zeros(2, k.out_features))
    assert change[:, k.out_features :].any()


def change_scale(layer):
    layer.scaling["default"] *= 2


def use_another_dtype(layer):
    layer.lora_A["default"].double()


@pytest.mark.parametrize("change", [change_scale, use_another_dtype])
def test_maps_whose_adapters_differ_are_not_joined(change):
    maps = attention_maps(adapted())
    assert can_join(maps)
    change(maps[0])
    assert not can_join(maps)


def merge(layer):
    layer.merge()


def use_dora(layer):
    layer.lora_variant["default"] = object()


def add_bias(layer):
    layer.lora_bias["default"] = True


def drop_out(layer):
    layer.lora_dropout["default"] = torch.nn.Dropout(0.1)


def name_another(layer):
    layer._active_adapter = ["other"]


def hook_forward(layer):
    layer.base_layer.forward = lambda x: x


@pytest.mark.parametrize("change", [merge, use_dora, add_bias, drop_out, name_another, hook_forward])
def test_other_uses_of_an_adapter_are_left_to_the_model(change):
    loaded = adapted()
    layer = attention_maps(loaded)[0]
    assert is_linear_map(layer)
    change(layer)
    assert not is_linear_map(layer)
    assert layer not in linear_modules(loaded.model)
    if change is not use_dora:
        assert TorchEngine(loaded, DecodeLimits(4)).fused is None


def test_adapters_of_another_dtype_than_their_weight_are_not_merged():
    layer = attention_maps(adapted())[0]
    assert merges(layer)
    layer.base_layer.bfloat16()
    assert not merges(layer)


def lose_merged(patched):
    patched.setattr(f"{fused_linear.__name__}.merged_weight", lambda linear: linear.base_layer.weight.detach())


def lose_joined(patched):
    patched.setattr(JoinedAdapters, "__call__", lambda joined, x: x.new_zeros(*x.shape[:-1], len(joined.up)))


@pytest.mark.parametrize(("dtype", "lose"), [(torch.float32, lose_merged), (torch.bfloat16, lose_joined)])
def test_a_way_that_loses_adapters_is_not_used(dtype, lose, monkeypatch):
    """The trial perturbs adapters: with fresh ones, which change nothing, this fault would not show."""
    loaded = make_nano(scale=1.0)
    loaded.model.to(dtype)
    add_adapters(loaded.model, LoraSection(rank=RANK), 0)
    before = [parameter.clone() for parameter in loaded.model.parameters()]
    engine = TorchEngine(loaded, DecodeLimits(4))
    assert engine.reorders
    assert engine.fused is not None
    lose(monkeypatch)
    engine = TorchEngine(loaded, DecodeLimits(4))
    assert not engine.reorders or engine.fused is None
    assert all(map(torch.equal, before, loaded.model.parameters()))


def test_a_clone_decodes_with_the_copys_adapters():
    loaded = adapted()
    engine = TorchEngine(loaded, DecodeLimits(6))
    clone = engine.clone_for(sampler_copy_of(loaded))
    assert clone.fused is not None
    prompts = make_prompts(loaded, 2)
    one, two = completions(engine, prompts), completions(clone, prompts)
    assert [each.token_ids for each in one] == [each.token_ids for each in two]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3"])
def test_other_families(family, tmp_path):
    loaded = load_float32(write_checkpoint(tmp_path, family))
    add_adapters(loaded.model, LoraSection(rank=RANK), 0)
    fill(loaded.model)
    prompts = make_prompts(loaded, 3)
    on, off = (TorchEngine(loaded, DecodeLimits(6), reorder_weights=switch) for switch in (True, False))
    for one, two in zip(completions(on, prompts), completions(off, prompts), strict=True):
        assert one.token_ids == two.token_ids
        np.testing.assert_allclose(one.logp_gen, two.logp_gen, atol=2e-5)

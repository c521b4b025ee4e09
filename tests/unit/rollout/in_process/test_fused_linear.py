"""Reordered weights give a model's own numbers while they are in use, and leave no trace."""

import pytest
import torch

from heliostat.config import LoraSection
from heliostat.models.lora import add_adapters
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process import fused_linear
from heliostat.rollout.in_process.fused_linear import FusedLinear, can_reorder, linear_modules, reordered
from tests.support.checkpoints import load_float32, write_checkpoint
from tests.support.nano import make_nano, make_prompts


def sample(engine, prompts, seed=7):
    request = SampleRequest(prompts, 3, SamplingSettings(temperature=1.3), seed=seed, policy_step=0)
    return [completion for group in engine.sample(request) for completion in group.completions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("reorders", [True, False])
def test_one_product_is_several_linear_maps(dtype, biases, reorders):
    torch.manual_seed(0)
    linears = [torch.nn.Linear(40, width, bias=biases).to(dtype) for width in (24, 33)]
    product = FusedLinear(*linears)
    x, residual = torch.randn(6, 2, 40).to(dtype), torch.randn(6, 2, 57).to(dtype)
    with torch.inference_mode():
        expected = torch.cat([linear(x) for linear in linears], dim=-1)
        if reorders:
            product.reorder()
        torch.testing.assert_close(product(x), expected, rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-5)
        torch.testing.assert_close(product.onto(residual, x), residual + expected)
        strided = torch.randn(6, 5, 40).to(dtype)[:, -1]  # the last of several tokens, as the head gets it
        torch.testing.assert_close(product(strided), torch.cat([linear(strided) for linear in linears], dim=-1))


def test_copies_are_of_the_weights_at_hand_and_are_dropped():
    linear = torch.nn.Linear(5, 3, bias=False)
    product = FusedLinear(linear)
    x = torch.randn(2, 5)
    with torch.inference_mode():
        product.reorder()
        linear.weight.data.mul_(2.0)
        torch.testing.assert_close(2 * product(x), linear(x))
        product.reorder()
        torch.testing.assert_close(product(x), linear(x))
        linear.bfloat16()  # as gathered weights of mixed precision are
        product.drop()
        torch.testing.assert_close(product(x.bfloat16()), linear(x.bfloat16()))


@pytest.mark.parametrize("settings", [{}, {"fused_layers": False}, {"shared_prompt": False}], ids=str)
def test_the_switch_changes_no_completion(settings):
    loaded = make_nano(num_heads=4, num_kv_heads=2)
    prompts = make_prompts(loaded, 5)
    on, off = (TorchEngine(loaded, DecodeLimits(8), **settings, reorder_weights=switch) for switch in (True, False))
    assert on.reorders
    assert not off.reorders
    for one, two in zip(sample(on, prompts), sample(off, prompts), strict=True):
        assert one.token_ids == two.token_ids
        assert one.logp_gen == pytest.approx(two.logp_gen, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3"])
def test_other_families(family, tmp_path):
    loaded = load_float32(write_checkpoint(tmp_path, family))
    prompts = make_prompts(loaded, 3)
    on, off = (TorchEngine(loaded, DecodeLimits(6), reorder_weights=switch) for switch in (True, False))
    assert on.reorders
    for one, two in zip(sample(on, prompts), sample(off, prompts), strict=True):
        assert one.token_ids == two.token_ids
        assert one.logp_gen == pytest.approx(two.logp_gen, abs=1e-5)


def test_base_weights_of_adapters_are_reordered_and_every_module_is_as_before():
    loaded = make_nano()
    add_adapters(loaded.model, LoraSection(rank=2), 0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    prompts = make_prompts(loaded, 2)
    on, off = (TorchEngine(loaded, DecodeLimits(6), reorder_weights=switch) for switch in (True, False))
    assert len(linear_modules(loaded.model)) > len(linear_modules(loaded.head.projection))
    assert [each.token_ids for each in sample(on, prompts)] == [each.token_ids for each in sample(off, prompts)]
    assert not any("forward" in vars(module) for module in loaded.model.modules())


def test_modules_are_as_before_after_an_error():
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(ZeroDivisionError), reordered([linear]):
        raise ZeroDivisionError
    assert "forward" not in vars(linear)


def test_gradients_and_other_dtypes_take_the_module_itself():
    linear = torch.nn.Linear(4, 3)
    x = torch.randn(2, 4)
    linear(x).sum().backward()
    expected, linear.weight.grad = linear.weight.grad, None
    with reordered([linear]):
        linear(x).sum().backward()
        with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
            linear(x.double())
    torch.testing.assert_close(linear.weight.grad, expected)


def test_a_module_with_a_forward_of_its_own_is_left_alone():
    linear = torch.nn.Linear(4, 3)
    linear.forward = lambda x: x  # as accelerate hooks do
    assert linear_modules(linear) == []


def test_a_wrong_a_missing_and_a_large_product_are_refused(monkeypatch):
    loaded = make_nano()
    assert can_reorder(loaded)
    with monkeypatch.context() as patched:
        patched.setattr(FusedLinear, "__call__", lambda product, x: torch.zeros(1))
        assert not can_reorder(loaded)
    with monkeypatch.context() as patched:
        patched.setattr(torch.ops, "mkldnn", object())
        assert not can_reorder(loaded)
        assert sample(TorchEngine(loaded, DecodeLimits(4)), make_prompts(loaded, 2))
    monkeypatch.setattr(fused_linear, "MAX_BYTES", 1000)
    assert not can_reorder(loaded)

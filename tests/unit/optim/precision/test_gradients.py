import copy

import pytest
import torch

from heliostat.config import OptimizerSection
from heliostat.optim import accumulate_in_float32, build_optimizer
from heliostat.optim.precision.gradients import no_gradient

pytestmark = pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10 has one type")


def network(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).to(dtype)


def parts(num):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 12, generator=generator).bfloat16() for _ in range(num)]


def backward(model, inputs):
    model(inputs).float().square().mean().backward()


def gradients(model):
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize("num", [1, 2, 64])
def test_n_passes_give_the_float32_sum_of_their_n_gradients(num):
    model, single = network(), network()
    assert accumulate_in_float32(model.parameters())
    expected = 0.0
    for inputs in parts(num):
        backward(model, inputs)
        single.zero_grad()
        backward(single, inputs)
        assert gradients(single).dtype == torch.bfloat16
        expected = gradients(single).float() + expected
    assert torch.equal(gradients(model), expected)


def test_the_weights_own_type_loses_a_percent_of_64_passes():
    """What the float32 sum is for."""
    model, wide = network(), network()
    accumulate_in_float32(wide.parameters())
    for inputs in parts(64):
        backward(model, inputs)
        backward(wide, inputs)
    lost = (gradients(model).float() - gradients(wide)).norm() / gradients(wide).norm()
    assert float(lost) > 2e-3


def test_a_step_takes_gradients_of_either_type():
    """The same numbers in both: the same step, bit for bit."""
    section = OptimizerSection(name="adamw", lr=1e-2)
    one, other = network(), network()
    steps = [build_optimizer(section, model) for model in (one, other)]
    accumulate_in_float32(other.parameters())
    for model, optimizer in zip((one, other), steps, strict=True):
        backward(model, parts(1)[0])
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_clipping_scales_the_float32_gradient():
    model = network()
    accumulate_in_float32(model.parameters())
    for inputs in parts(3):
        backward(model, inputs)
    before = gradients(model).clone()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-6)
    torch.testing.assert_close(gradients(model), before * (1e-3 / (norm + 1e-6)), rtol=1e-6, atol=0)


def test_float32_and_frozen_weights_are_left_alone_and_asking_twice_changes_nothing():
    full = network(torch.float32)
    assert accumulate_in_float32(full.parameters())
    assert {parameter.grad_dtype for parameter in full.parameters()} == {torch.float32}
    model = network()
    model[0].weight.requires_grad_(False)
    for _ in range(2):
        accumulate_in_float32(model.parameters())
    assert model[0].weight.grad_dtype == torch.bfloat16
    assert len(model[0].bias._post_accumulate_grad_hooks) == 1


def test_an_absent_gradient_has_the_type_of_the_others():
    model = network()
    assert no_gradient(model[0].bias).dtype == torch.bfloat16
    accumulate_in_float32(model.parameters())
    assert no_gradient(model[0].bias).dtype == torch.float32
    assert no_gradient(network(torch.float32)[0].bias).dtype == torch.float32


def test_a_copied_model_has_gradients_as_torch_makes_them():
    model = network()
    accumulate_in_float32(model.parameters())
    other = copy.deepcopy(model)
    backward(other, parts(1)[0])
    assert gradients(other).dtype == torch.bfloat16

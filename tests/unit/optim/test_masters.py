import copy

import torch

from heliostat.config import OptimizerSection
from heliostat.optim import build_optimizer, forget_moments
from heliostat.optim.masters import MasterWeights


def pair():
    torch.manual_seed(0)
    short = torch.nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    full = copy.deepcopy(short).float()
    return short, full


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        inputs = torch.full((1, 8), 1.0 + step, dtype=model.weight.dtype)
        # The gradient of a sum is the input, exactly representable in both types, so both see the same one.
        model(inputs).sum().backward()
        optimizer.step()


def test_masters_follow_float32_training_and_weights_are_their_rounding():
    short, full = pair()
    section = OptimizerSection(name="adamw", lr=1e-4)
    wrapped, plain = build_optimizer(section, short), build_optimizer(section, full)
    assert isinstance(wrapped, MasterWeights)
    assert not isinstance(plain, MasterWeights)
    train(short, wrapped, 20)
    train(full, plain, 20)
    torch.testing.assert_close(next(iter(wrapped.masters.values())), full.weight.detach(), atol=1e-7, rtol=0)
    assert torch.equal(short.weight, full.weight.detach().bfloat16())


def test_small_updates_add_up_where_bare_bfloat16_would_lose_them():
    short = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(short.weight)
    bare = copy.deepcopy(short)
    section = OptimizerSection(name="sgd", lr=1e-3)
    wrapped, lossy = build_optimizer(section, short), torch.optim.SGD(bare.parameters(), lr=1e-3)
    for _ in range(40):
        for model, optimizer in ((short, wrapped), (bare, lossy)):
            optimizer.zero_grad()
            model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
    assert torch.equal(bare.weight, torch.ones_like(bare.weight))
    torch.testing.assert_close(short.weight.float(), torch.full((1, 4), 0.96), atol=4e-3, rtol=0)


def test_saving_and_loading_continues_bit_for_bit():
    short, _ = pair()
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=1e-3), short)
    train(short, optimizer, 3)
    other, _ = pair()
    resumed = build_optimizer(OptimizerSection(name="adamw", lr=1e-3), other)
    other.load_state_dict(short.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(short, optimizer, 3, start=3)
    train(other, resumed, 3, start=3)
    assert torch.equal(short.weight, other.weight)


def test_learning_rates_are_handed_through_and_moments_can_be_forgotten():
    short, _ = pair()
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=1e-3), short)
    train(short, optimizer, 1)
    kept = next(iter(optimizer.masters.values())).clone()
    optimizer.param_groups[0]["lr"] = 0.0
    train(short, optimizer, 1)
    assert torch.equal(next(iter(optimizer.masters.values())), kept)
    forget_moments(optimizer)
    assert not optimizer.inner.state

import copy

import pytest
import torch

from heliostat.config import ConfigError, OptimizerSection
from heliostat.optim import BaseOptimizer, KroneckerSum, build_optimizer, forget_moments, optimizer_names
from heliostat.optim.master_weights import MasterWeights


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


# -- weights that somebody else writes -----------------------------------------------------------------------------


def through_data(model, new):
    model.weight.data.copy_(new)


def in_place(model, new):
    with torch.no_grad():
        model.weight.copy_(new)


def other_memory(model, new):
    model.weight.data = new.clone()


def loaded(model, new):
    model.load_state_dict({"weight": new})


def assigned(model, new):
    model.weight.detach().view(torch.int16).copy_(new.view(torch.int16))


def another_optimizer(model, new):
    other = build_optimizer(OptimizerSection(name="sgd", lr=1.0), model)
    model.weight.grad = model.weight.detach() - new
    other.step()
    model.weight.data.copy_(new)  # its rounding is not the point


WRITERS = [through_data, in_place, other_memory, loaded, assigned, another_optimizer]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_whoever_writes_weights_the_next_step_starts_from_what_was_written(write, steps_before):
    short, _ = pair()
    new = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    optimizer = build_optimizer(OptimizerSection(name="sgd", lr=2.0**-6), short)
    train(short, optimizer, steps_before)
    write(short, new)
    fresh = copy.deepcopy(short)
    train(short, optimizer, 2, start=5)
    train(fresh, build_optimizer(OptimizerSection(name="sgd", lr=2.0**-6), fresh), 2, start=5)
    assert torch.equal(short.weight, fresh.weight)
    assert torch.equal(optimizer.masters[short.weight], new.float() - 2.0**-6 * (6.0 + 7.0))


def test_only_what_was_written_is_taken_over():
    """Rows that nobody touched keep what their copies have beyond the rounding."""
    short, untouched = pair()[0], pair()[0]
    optimizers = [build_optimizer(OptimizerSection(name="sgd", lr=1e-4), model) for model in (short, untouched)]
    for model, optimizer in zip((short, untouched), optimizers, strict=True):
        train(model, optimizer, 3)
    assert not torch.equal(optimizers[0].masters[short.weight], short.weight.detach().float())
    short.weight.data[2] = 1.5
    for model, optimizer in zip((short, untouched), optimizers, strict=True):
        train(model, optimizer, 1, start=3)
    kept, expected = optimizers[0].masters[short.weight], optimizers[1].masters[untouched.weight]
    others = [0, 1, *range(3, 8)]
    assert torch.equal(kept[others], expected[others])
    assert torch.equal(kept[2], torch.full((8,), 1.5) - 1e-4 * 4.0)


def test_what_is_saved_belongs_to_the_weights_that_are_saved():
    short, _ = pair()
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=1e-3), short)
    train(short, optimizer, 2)
    short.weight.data.mul_(2.0)
    assert torch.equal(optimizer.state_dict()["state"][0]["master"], short.weight.detach().float())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_weight_is_not_healed_in_silence(broken):
    short, _ = pair()
    optimizer = build_optimizer(OptimizerSection(name="sgd", lr=1e-3), short)
    short.weight.data[0, 0] = broken
    train(short, optimizer, 1)
    assert not bool(torch.isfinite(short.weight[0, 0]))
    assert bool(torch.isfinite(short.weight.flatten()[1:]).all())


def test_state_of_float32_weights_is_refused_in_a_sentence():
    short, full = pair()
    section = OptimizerSection(name="adamw", lr=1e-3)
    with pytest.raises(ValueError, match="no float32 copies"):
        build_optimizer(section, short).load_state_dict(build_optimizer(section, full).state_dict())


def test_double_precision_keeps_its_own_and_half_is_refused():
    section = OptimizerSection(name="adamw", lr=1e-3)
    assert not isinstance(build_optimizer(section, torch.nn.Linear(2, 2, dtype=torch.float64)), MasterWeights)
    with pytest.raises(ConfigError, match="float16 weights are not trained"):
        build_optimizer(section, torch.nn.Linear(2, 2, dtype=torch.float16))
    frozen = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.float16), torch.nn.Linear(2, 2)).requires_grad_(
        False
    )
    frozen[1].requires_grad_(True)
    assert not isinstance(build_optimizer(section, frozen), MasterWeights)


@pytest.mark.parametrize("name", sorted(optimizer_names()))
def test_every_optimizer_of_a_recipe_steps_bfloat16_weights_on_copies(name):
    """Torch's behind master weights, ours by themselves; RENG, in the mode that needs no second point."""
    section = OptimizerSection(name=name, lr=1e-3, **({"mode": "double-backward"} if name == "reng" else {}))
    optimizer = build_optimizer(section, pair()[0])
    assert isinstance(optimizer, MasterWeights) == (name in ("adamw", "sgd"))
    assert isinstance(optimizer, BaseOptimizer)
    frozen_base = torch.nn.Sequential(pair()[0].requires_grad_(False), torch.nn.Linear(8, 8))
    assert not isinstance(build_optimizer(section, frozen_base), MasterWeights)  # the trained weights decide


def test_a_second_point_that_would_round_away_is_refused_with_the_setting_to_change():
    with pytest.raises(ConfigError, match=r"optimizer\.mode 'finite-difference'.*bfloat16.*mode = 'double-backward'"):
        build_optimizer(OptimizerSection(name="reng", lr=1e-3), pair()[0])


def test_double_precision_inside_is_copied_in_double_precision():
    short, wide = pair()[0], torch.nn.Linear(8, 1, bias=False, dtype=torch.float64)
    optimizer = build_optimizer(OptimizerSection(name="sgd", lr=2.0**-40), torch.nn.Sequential(short, wide))
    before = wide.weight.detach().clone()
    wide.weight.grad = torch.ones_like(wide.weight)
    optimizer.step()
    assert torch.equal(wide.weight, before - 2.0**-40)
    assert not torch.equal(wide.weight, before)


def test_weights_of_eight_bits_are_refused_unless_they_are_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0].weight = torch.nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn))
    for name in ("adamw", "eva", "kronecker-sum"):
        with pytest.raises(ConfigError, match=r"float8_e4m3fn are not trained: freeze them and train adapters"):
            build_optimizer(OptimizerSection(name=name, lr=0.1), model)
    with pytest.raises(ValueError, match=r"does not step weights of type torch\.float8_e4m3fn: freeze it"):
        KroneckerSum([model[0].weight], lr=0.1)
    model[0].weight.requires_grad_(False)
    for name in ("adamw", "eva", "kronecker-sum"):
        build_optimizer(OptimizerSection(name=name, lr=0.1), model)

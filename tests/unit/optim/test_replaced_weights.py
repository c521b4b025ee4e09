import copy

import pytest
import torch
from torch import nn

from heliostat.config import OptimizerSection
from heliostat.optim import build_optimizer, optimizer_names
from heliostat.optim.replaced_weights import refuse_replaced_weights


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4, dtype=model[0].weight.dtype)).float().square().sum().backward()
    optimizer.step()


def assigned(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def one_replaced(model):
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())


@pytest.mark.parametrize("replace", [assigned, one_replaced])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd", "eva", "kronecker-sum"])
def test_weights_that_were_replaced_are_named_before_a_step_that_would_not_move_them(name, dtype, replace):
    model = network(dtype)
    optimizer = build_optimizer(OptimizerSection(name=name, lr=1e-3), model)
    step(model, optimizer)
    replace(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"'[01].weight' is another parameter than when the optimizer was made"):
        step(model, optimizer)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def tied(model):
    model[1].weight = model[0].weight


def parametrized(model):
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Identity())


def grown(model):
    model.append(nn.Linear(4, 4))


def other_memory(model):
    model[1].weight.data = model[1].weight.detach().clone()


def frozen(model):
    model[1].weight = nn.Parameter(model[1].weight.detach().clone(), requires_grad=False)


@pytest.mark.parametrize("change", [tied, parametrized, grown, other_memory, frozen])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_still_trained_is_no_reason_to_stop(change, dtype):
    model = network(dtype)
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=1e-2), model)
    step(model, optimizer)
    change(model)
    if change is grown:
        model[2].to(dtype)
    before = model[0].weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model[0].weight, before)
    if change is parametrized:
        assert model[1].parametrizations.weight.original.grad is not None


def test_a_model_that_is_gone_is_not_asked():
    weight = nn.Parameter(torch.ones(3))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    refuse_replaced_weights(optimizer, model)
    del model
    weight.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(weight, torch.full((3,), 0.9))


def test_copies_and_files_of_an_optimizer_do_not_ask_the_model():
    for name in optimizer_names():
        settings = {"mode": "double-backward"} if name == "reng" else {}
        optimizer = build_optimizer(OptimizerSection(name=name, lr=1e-3, **settings), network(torch.bfloat16))
        assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks

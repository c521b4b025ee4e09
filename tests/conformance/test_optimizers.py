"""What every optimizer must do before a person may trust it with a model; the rows are in ``optimizer_rows``."""

import copy
import warnings

import pytest
import torch
from optimizer_rows import ROWS, Classifier, batch, clone, mean_loss, row_name, saved, train_step, weights

from heliostat.optim import SkippedStepWarning

every = pytest.mark.parametrize("row", ROWS, ids=row_name)


def trained(row, steps=4, dtype=torch.float64, model=None, **how):
    model = model or Classifier(dtype)
    optimizer = row.make(model)
    for step in range(steps):
        train_step(optimizer, model, *batch(seed=step), **how)
    return model, optimizer


# -- problems whose answer is known ------------------------------------------------------------------------------------


class Softmax(torch.nn.Module):
    """Softmax regression, which is convex."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3, bias=False).double()
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, inputs):
        return self.linear(inputs)


def convex():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    logits = inputs @ torch.randn(4, 3, generator=generator, dtype=torch.float64) * 1.5
    return inputs, torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)


def value(model, inputs, labels):
    return float(mean_loss(model, inputs, labels).detach())


def optimum():
    model, (inputs, labels) = Softmax(), convex()
    solver = torch.optim.LBFGS(model.parameters(), max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = mean_loss(model, inputs, labels)
        loss.backward()
        return loss

    solver.step(closure)
    return value(model, inputs, labels)


@every
def test_a_convex_problem_is_solved(row):
    torch.manual_seed(0)
    model, (inputs, labels) = Softmax(), convex()
    optimizer, start, best, num_steps = row.make(model), value(model, inputs, labels), optimum(), 100
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("first_lr", group["lr"]) * (1 - step / num_steps) * row.convex_gain
        order = torch.randperm(len(inputs))
        train_step(optimizer, model, inputs[order], labels[order])
    assert (value(model, inputs, labels) - best) / (start - best) < 0.02


@every
def test_a_network_learns(row):
    model, (inputs, labels) = Classifier(), batch(36)
    optimizer, before = row.make(model), value(model, inputs, labels)
    for _ in range(25):
        train_step(optimizer, model, inputs, labels)
    assert value(model, inputs, labels) < before - 0.3


# -- what may not matter -----------------------------------------------------------------------------------------------


@every
def test_accumulated_micro_batches_are_one_batch(row):
    one, _ = trained(row)
    other, _ = trained(row, num_parts=3)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-8, atol=1e-9)


@every
def test_the_extra_pass_may_come_before_the_loss_or_after_it(row):
    one, _ = trained(row)
    other, _ = trained(row, extra_first=True)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("row", [row for row in ROWS if row.takes_groups], ids=row_name)
def test_grouping_does_not_matter(row):
    one, _ = trained(row)
    model = Classifier()
    parameters = list(model.parameters())
    optimizer = row.make([{"params": parameters[:3]}, {"params": parameters[3:]}])
    for step in range(4):
        train_step(optimizer, model, *batch(seed=step))
    torch.testing.assert_close(weights(one), weights(model), rtol=1e-8, atol=1e-10)


@every
def test_single_and_double_precision_agree(row):
    one, _ = trained(row, steps=2)
    other, _ = trained(row, steps=2, dtype=torch.float32)
    start = weights(Classifier())
    moved, same = weights(one) - start, weights(other).double() - start
    assert float((moved - same).norm() / moved.norm()) < 2e-3


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "reng-difference"], ids=row_name)  # refused
def test_bfloat16_weights_move_and_stay_finite_with_wide_state(row):
    model, optimizer = trained(row, steps=3, dtype=torch.bfloat16)
    assert bool(torch.isfinite(weights(model)).all())
    assert not torch.equal(weights(model), weights(Classifier(torch.bfloat16)))
    again = row.make(clone(model))
    again.load_state_dict(saved(optimizer))
    for old, new in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert {k: v.dtype for k, v in old.items() if isinstance(v, torch.Tensor)} == {
            k: v.dtype for k, v in new.items() if isinstance(v, torch.Tensor)
        }


# -- saving ------------------------------------------------------------------------------------------------------------


@every
def test_saving_and_loading_continues_bit_for_bit(row):
    model, optimizer = trained(row, steps=3)
    other = clone(model)
    resumed = row.make(other)
    resumed.load_state_dict(saved(optimizer))
    for step in range(3, 7):
        train_step(optimizer, model, *batch(seed=step))
        train_step(resumed, other, *batch(seed=step))
    assert torch.equal(weights(model), weights(other))


@every
def test_the_learning_rate_is_the_groups(row):
    model, optimizer = trained(row, steps=1)
    before = weights(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    train_step(optimizer, model, *batch())
    schedule.step()
    assert torch.equal(weights(model), before)


# -- gradients that are zero, missing or broken ------------------------------------------------------------------------


@every
def test_a_zero_gradient_moves_nothing(row):
    model = Classifier()
    optimizer, before = row.make(model), weights(model)
    train_step(optimizer, model, *batch(), scale=0.0)
    assert torch.equal(weights(model), before)
    train_step(optimizer, model, *batch())
    assert bool(torch.isfinite(weights(model)).all())
    assert not torch.equal(weights(model), before)


def same_state(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one if k != "num_skipped")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_gradient_is_skipped_counted_and_warned_of(row, bad):
    model, optimizer = trained(row, steps=2)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    handle = model.hidden.weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor([2]), bad))
    with pytest.warns(SkippedStepWarning, match="skipped"):
        train_step(optimizer, model, *batch(seed=2))
    handle.remove()
    assert torch.equal(weights(model), before)
    assert same_state(state, optimizer.state_dict())
    assert optimizer.num_skipped == 1
    assert saved(optimizer)["num_skipped"] == 1
    clean = clone(model)
    unharmed = row.make(clean)
    unharmed.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedStepWarning)
        train_step(optimizer, model, *batch(seed=3))
        train_step(unharmed, clean, *batch(seed=3))
    assert torch.equal(weights(model), weights(clean)), "nothing of the broken step is left"


@every
def test_weights_without_gradient_and_frozen_ones_stay(row):
    model = Classifier()
    model.unused = torch.nn.Linear(3, 3).double()
    model.hidden.weight.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    optimizer = row.make(model)
    frozen = [p.clone() for p in (*model.unused.parameters(), model.hidden.weight, model.norm.bias)]
    before = model.head.weight.clone()
    for step in range(3):
        train_step(optimizer, model, *batch(seed=step))
    for old, new in zip(frozen, (*model.unused.parameters(), model.hidden.weight, model.norm.bias), strict=True):
        assert torch.equal(old, new)
    assert not torch.equal(model.head.weight, before)


class Tied(Classifier):
    """The embedding is the head as well, and one matrix is used twice."""

    def __init__(self):
        super().__init__()
        self.square = torch.nn.Linear(5, 5).double()
        torch.nn.init.eye_(self.square.weight)
        torch.nn.init.zeros_(self.square.bias)
        del self.head, self.hidden

    def forward(self, inputs):
        hidden = self.square(torch.tanh(self.square(self.norm(self.embedding(inputs)))))
        return hidden @ self.embedding.weight.T[:, :3]


@every
def test_shared_weights_are_trained_once_and_together(row):
    model, (inputs, labels) = Tied(), batch(36)
    optimizer, before = row.make(model), value(model, inputs, labels)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        group["lr"] *= 0.2
    for _ in range(20):
        train_step(optimizer, model, inputs, labels)
    assert value(model, inputs, labels) < before - 0.05

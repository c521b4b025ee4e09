"""Finite gradients of any size, autocast, loss scaling, compiled models, and scores of nothing: right, or said."""

import copy
import warnings

import pytest
import torch
from optimizer_rows import ROWS, Classifier, batch, clone, drawn, mean_loss, row_name, train_step, weights

from heliostat.curvature import sampled_log_likelihood
from heliostat.optim import RING, Eva, KroneckerProduct, KroneckerSum, Rank1NaturalGradient, RKalman, SkippedStepWarning
from heliostat.optim.base.optimizer import BaseOptimizer
from tests.conformance.test_optimizers import same_state
from tests.conformance.test_torch_contract import EVERY, made

every = pytest.mark.parametrize("row", EVERY, ids=row_name)
ours = pytest.mark.parametrize("row", ROWS, ids=row_name)
SIZES = [10.0**power for power in (-38, -30, -24, -20, -19, -12, 0, 12, 18, 19, 20, 25, 30, 37)]


def scaled_by(optimizer, factor):
    """Every gradient times ``factor``, just before the step; in float32 that may leave its range."""

    def scale(*_):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    largest = float(parameter.grad.abs().max())
                    unit = parameter.grad.double() / (largest or 1.0)
                    parameter.grad = (unit * factor).clamp(-3e38, 3e38).to(parameter.dtype)

    return optimizer.register_step_pre_hook(scale)


# -- finite gradients of any size --------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("size", SIZES)
def test_a_finite_gradient_of_any_size_moves_finitely_or_is_skipped(row, size):
    model, optimizer = made(row)
    if not isinstance(optimizer, BaseOptimizer):
        return
    for step in range(2):
        train_step(optimizer, model, *batch(seed=step))
    before, state, taken = weights(model), copy.deepcopy(optimizer.state_dict()), optimizer.num_steps
    handle = scaled_by(optimizer, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStepWarning)
        train_step(optimizer, model, *batch(seed=2))
    handle.remove()
    if optimizer.num_skipped:
        assert optimizer.num_steps == taken
        assert torch.equal(weights(model), before)
        assert same_state(state, optimizer.state_dict())
    assert bool(torch.isfinite(weights(model)).all())
    for own in optimizer.state_dict()["state"].values():
        tensors = [value for value in own.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    before = weights(model)
    for step in range(3, 6):
        train_step(optimizer, model, *batch(seed=step))
    assert bool(torch.isfinite(weights(model)).all())
    assert size > 1e6 or optimizer.num_skipped == 0, "small gradients are no reason to stand still"


@every
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e20, 1e38])
def test_from_the_first_step_on(row, size):
    model, optimizer = made(row)
    scaled_by(optimizer, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedStepWarning)
        for step in range(3):
            train_step(optimizer, model, *batch(seed=step))
    assert bool(torch.isfinite(weights(model)).all())
    assert optimizer.num_steps + optimizer.num_skipped == 3


@pytest.mark.parametrize("make", [KroneckerProduct, lambda params, lr: KroneckerSum(params, lr, graft=False)])
@pytest.mark.parametrize("power", [-124, -100, -80, -60, 40, 50])
def test_the_kronecker_rules_do_not_know_the_gradients_units(make, power):
    """Also where its squares are out of float32's range; the ungrafted sum's statistics end sooner."""
    if make is not KroneckerProduct and not -70 < power < 60:
        return
    moves = []
    for exponent in (0, power):
        weight = torch.nn.Parameter(torch.zeros(6, 5))
        optimizer = make([weight], lr=1.0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            weight.grad = torch.ldexp(torch.randn(6, 5, generator=generator), torch.tensor(exponent))
            optimizer.step()
        moves.append(weight.detach().clone())
    torch.testing.assert_close(moves[0], moves[1], rtol=2e-3, atol=2e-3)


def test_a_grafted_step_is_as_long_as_adams_whatever_the_gradients_size():
    for size in (1e-6, 1e-12, 1e-20, 1e-24, 1e-30):
        weight, other = (torch.nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
        gradient = size * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
        for parameter, optimizer in (
            (weight, KroneckerSum([weight], lr=1.0)),
            (other, torch.optim.AdamW([other], lr=1.0, weight_decay=0.0)),
        ):
            parameter.grad = gradient.clone()
            optimizer.step()
        lengths = [float(torch.linalg.vector_norm(p.detach().double())) for p in (weight, other)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)


@pytest.mark.parametrize("make", [KroneckerProduct, KroneckerSum])
def test_a_network_whose_first_layers_hardly_have_a_gradient_trains_the_others(make):
    torch.manual_seed(0)
    layers = [layer for _ in range(70) for layer in (torch.nn.Linear(8, 8), torch.nn.Tanh())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))
    optimizer, inputs, labels = make(model.parameters(), lr=1e-3), torch.randn(16, 8), torch.randint(0, 3, (16,))
    before = model[-1].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        mean_loss(model, inputs, labels).backward()
        optimizer.step()
    assert 0 < float(model[0].weight.grad.abs().max()) < 1e-18
    assert optimizer.num_skipped == 0
    assert bool(torch.isfinite(torch.cat([p.detach().flatten() for p in model.parameters()])).all())
    assert not torch.equal(model[-1].weight, before)


def test_an_error_in_the_middle_of_a_step_puts_everything_back():
    model = Classifier(torch.float32)
    optimizer = RING(model, lr=0.1)
    with optimizer.statistics():  # of one layer only, so that the step fails at the other
        model.hidden(torch.ones(3, 5)).sum().backward()
    mean_loss(model, *batch()).backward()
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="no statistics of layer 'head'"):
        optimizer.step()
    assert torch.equal(weights(model), before)
    assert same_state(state, optimizer.state_dict())


# -- autocast ----------------------------------------------------------------------------------------------------------


class UnderAutocast(torch.nn.Module):
    """The classifier, run in bfloat16 as accelerate runs a model."""

    def __init__(self):
        super().__init__()
        self.inner = Classifier(torch.float32)

    def forward(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(inputs).float()


def moved_after(row, model, optimizer, steps=3, around_the_step=False):
    start = weights(model)
    for step in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around_the_step):
            train_step(optimizer, model, *batch(num=24, seed=step))
    return weights(model) - start


@ours
@pytest.mark.parametrize("around_the_step", [False, True], ids=["forward", "everything"])
def test_under_autocast_a_step_is_close_to_float32s(row, around_the_step):
    plain = Classifier(torch.float32)
    exact = moved_after(row, plain, row.make(plain))
    model = plain.__class__(torch.float32) if around_the_step else UnderAutocast()
    optimizer = row.make(model)
    near = moved_after(row, model, optimizer, around_the_step=around_the_step)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    held = [v for own in optimizer.state.values() for v in own.values() if isinstance(v, torch.Tensor)]
    assert all(value.dtype != torch.bfloat16 for value in held)
    assert float((near - exact).norm() / exact.norm()) < 0.25


def test_accelerate_drives_them_in_bfloat16():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    for make in (lambda m: Eva(m, lr=0.1), lambda m: KroneckerProduct(m.named_parameters())):
        model = Classifier(torch.float32)
        model, optimizer = accelerator.prepare(model, make(model))
        before = weights(model)
        for step in range(2):
            optimizer.zero_grad()
            accelerator.backward(mean_loss(model, *batch(seed=step)))
            optimizer.step()
        assert bool(torch.isfinite(weights(model)).all())
        assert not torch.equal(weights(model), before)


# -- loss scaling ------------------------------------------------------------------------------------------------------


@every
def test_a_grad_scaler_is_unscaled_or_refused(row):
    """What it takes beside the gradient would be scaled too, and nobody would know."""
    (model, optimizer), (other, twin) = made(row), made(row)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    train_step(twin, other, *batch())
    if optimizer.extra_pass == "none" and not isinstance(optimizer, Eva):
        scaler.scale(mean_loss(model, *batch())).backward()
        scaler.step(optimizer)
        torch.testing.assert_close(weights(model), weights(other), rtol=1e-3, atol=1e-5)
        return
    for unscaled_before in (False, True):
        optimizer.zero_grad()
        scaler.scale(mean_loss(model, *batch())).backward()
        if unscaled_before:
            scaler.update()
            scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="leave GradScaler out"):
            scaler.step(optimizer)
        assert torch.equal(weights(model), before)
    train_step(optimizer, model, *batch())  # without it, it goes on
    assert torch.equal(weights(model), weights(other))


def test_a_gradient_that_is_its_own_score_is_unscaled():
    moved = []
    for scale in (1.0, 4096.0):
        model = Classifier(torch.float32)
        optimizer = Rank1NaturalGradient(model.parameters(), lr=0.1, source="gradient")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(mean_loss(model, *batch())).backward()
        scaler.step(optimizer)
        moved.append(weights(model))
    torch.testing.assert_close(*moved)


# -- compiled models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.name in ("eva", "ring", "ring-empirical", "rank1", "kronecker-sum")], ids=row_name
)
def test_a_model_compiled_after_the_optimizer_was_made_trains_as_it_would(row):
    (model, optimizer), (other, twin) = made(row), made(row)
    compiled = torch.compile(model, backend="eager")
    for step in range(2):
        train_step(optimizer, compiled, *batch(seed=step))
        train_step(twin, other, *batch(seed=step))
    torch.testing.assert_close(weights(model), weights(other))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("make", [lambda m: Eva(m, lr=0.1), lambda m: RING(m, lr=0.1, empirical=True)])
def test_a_model_that_ran_compiled_before_is_seen_or_refused_but_never_plain_sgd(make):
    model = Classifier(torch.float32)
    compiled = torch.compile(model, backend="eager")
    mean_loss(compiled, *batch()).backward()
    model.zero_grad()
    optimizer, before = make(compiled), weights(model)
    mean_loss(compiled, *batch()).backward()
    with pytest.raises(RuntimeError, match=r"saw no pass through layer '.*hidden'.*compiled"):
        optimizer.step()
    assert torch.equal(weights(model), before)


def test_a_layer_whose_weight_is_used_without_calling_it_is_named():
    class Around(Classifier):
        def forward(self, inputs):
            hidden = torch.tanh(self.hidden(self.norm(self.embedding(inputs))))
            return torch.nn.functional.linear(hidden, self.head.weight, self.head.bias)

    model = Around(torch.float32)
    optimizer = Eva(model, lr=0.1)
    mean_loss(model, *batch()).backward()
    with pytest.raises(RuntimeError, match="saw no pass through layer 'head'"):
        optimizer.step()


# -- scores of nothing -------------------------------------------------------------------------------------------------

BY_SCORES = [
    lambda model: Rank1NaturalGradient(model.parameters(), lr=0.1),
    lambda model: RKalman(model.parameters(), lr=0.1),
]


@pytest.mark.parametrize("make", BY_SCORES, ids=["rank1", "rkalman"])
def test_scores_that_reach_no_weight_are_an_error(make):
    model = Classifier(torch.float32)
    optimizer, inputs = make(model), batch()[0][:1]
    other = clone(model)
    mean_loss(model, *batch()).backward()
    before = weights(model)
    with pytest.raises(RuntimeError, match="reaches none of the optimizer's parameters"):
        optimizer.step(score_closure=lambda: sampled_log_likelihood(other(inputs))[None])
    with pytest.raises(RuntimeError, match="no backward pass through the optimizer's parameters"), optimizer.score():
        sampled_log_likelihood(other(inputs)).backward()
    assert torch.equal(weights(model), before)
    optimizer.step(score_closure=lambda: sampled_log_likelihood(model(inputs))[None])
    assert optimizer.num_steps == 1


def test_scores_behind_reentrant_checkpoints_come_by_backward():
    from torch.utils.checkpoint import checkpoint

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs, labels = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def run(rows):
        return checkpoint(model, rows.clone().requires_grad_(), use_reentrant=True)

    optimizer = Rank1NaturalGradient(model.parameters(), lr=0.1, damping=0.1)
    torch.nn.functional.cross_entropy(run(inputs), labels).backward()
    with pytest.raises(RuntimeError, match="reentrant"):
        optimizer.step(score_closure=lambda: sampled_log_likelihood(run(inputs[:1]))[None])
    with optimizer.score():
        sampled_log_likelihood(run(inputs[:1])).backward()
    optimizer.step()
    assert optimizer.report.score_square_norm > 0


def test_ready_scores_must_be_the_parameters_own():
    model, other = Classifier(torch.float32), Classifier(torch.float32)
    optimizer = Rank1NaturalGradient(model.parameters(), lr=0.1)
    mean_loss(model, *batch()).backward()
    with pytest.raises(RuntimeError, match="own parameters"):
        optimizer.step(scores={p: torch.ones(1, *p.shape) for p in other.parameters()})
    with pytest.raises(RuntimeError, match="must have shape"):
        optimizer.step(scores={p: torch.ones(1, *p.shape, 1) for p in model.parameters()})


def test_statistics_of_a_batch_left_out_are_forgotten():
    steps = []
    for leaves_one_out in (False, True):
        model = Classifier(torch.float32)
        optimizer = RING(model, lr=0.1)
        inputs, labels = batch()
        if leaves_one_out:
            with optimizer.statistics():
                torch.nn.functional.cross_entropy(model(inputs) * 3, labels, reduction="sum").backward()
        optimizer.zero_grad()
        logits = model(inputs)
        with optimizer.statistics():
            torch.nn.functional.cross_entropy(model(inputs), drawn(logits, inputs), reduction="sum").backward()
        mean_loss(model, inputs, labels).backward()
        optimizer.step()
        steps.append(weights(model))
    assert torch.equal(*steps)

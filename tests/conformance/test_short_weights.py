"""Every optimizer on bfloat16 weights: as near to the float32 run from the same weights as bfloat16 passes allow."""

import copy

import pytest
import torch
from optimizer_rows import ROWS, Classifier, Row, batch, row_name, saved, train_step, weights
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heliostat.optim import RENG, Eva, KroneckerSum, accumulate_in_float32, forget_moments
from heliostat.optim.master_weights import with_master_weights
from heliostat.optim.precision.master_copies import MASTER


def over_copies(make):
    """An optimizer of torch's, over a model or groups, on copies where there are short weights."""

    def build(params, **settings):
        is_model = isinstance(params, torch.nn.Module)
        return with_master_weights([{"params": list(params.parameters())}] if is_model else params, make)

    return build


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0, fused=True)


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.5, momentum=0.5)


MASTERS = [Row("master-adamw", over_copies(adamw)), Row("master-sgd", over_copies(sgd))]
RENGS = [
    Row(f"reng-{make.__name__}", lambda p, make=make, **_: RENG(over_copies(make)(p), 0.05, mode="double-backward"))
    for make in (adamw, sgd)
]
EVERY = [*(row for row in ROWS if not row.name.startswith("reng")), *RENGS, *MASTERS]
every = pytest.mark.parametrize("row", EVERY, ids=row_name)


def bound(row):
    """Of the whole move: four units of bfloat16; more where entries are divided by the root of their own square."""
    return 0.1 if row.name.startswith("kronecker") else 0.025 if row.name == "rkalman-low-rank" else 2**-6


def made(row, short=True, small=1.0):
    model = Classifier(torch.bfloat16)
    model = model if short else model.float()
    optimizer = row.make(model)
    for group in optimizer.param_groups:
        group["lr"] *= small
    accumulate_in_float32(model.parameters())
    return model, optimizer


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        train_step(optimizer, model, *batch(num=24, seed=step), num_parts=2)


def copies(model, optimizer):
    return torch.cat([optimizer.state[parameter][MASTER].reshape(-1) for parameter in model.parameters()])


@every
def test_small_steps_add_up_as_in_float32(row):
    """Thirty steps, each far below the spacing of the weights, which bare bfloat16 would round away."""
    (model, optimizer), (full, reference) = made(row, small=1e-3), made(row, short=False, small=1e-3)
    start = weights(full)
    train(model, optimizer, 0, 30)
    train(full, reference, 0, 30)
    move = (weights(full) - start).norm()
    assert 0 < float((copies(model, optimizer) - weights(full)).norm() / move) < bound(row)
    assert optimizer.num_steps == 30


@every
def test_weights_are_their_copies_rounding_and_everything_kept_is_float32_or_wider(row):
    model, optimizer = made(row)
    train(model, optimizer, 0, 3)
    assert torch.equal(weights(model), copies(model, optimizer).bfloat16())
    assert not torch.equal(weights(model).float(), copies(model, optimizer))
    kept = [value for own in optimizer.state.values() for value in own.values() if isinstance(value, torch.Tensor)]
    assert {value.dtype for value in kept if value.is_floating_point()} <= {torch.float32, torch.float64}


@every
def test_a_saved_run_goes_on_bit_for_bit(row):
    model, optimizer = made(row)
    train(model, optimizer, 0, 3)
    other, twin = made(row)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    twin.load_state_dict(saved(optimizer))
    train(model, optimizer, 3, 6)
    train(other, twin, 3, 6)
    assert torch.equal(copies(model, optimizer), copies(other, twin))


@every
def test_weights_that_somebody_else_writes_are_taken_over(row):
    (model, optimizer), (other, twin) = made(row, small=1e-3), made(row, small=1e-3)
    train(model, optimizer, 0, 2)
    train(other, twin, 0, 2)
    with torch.no_grad():
        model.head.weight.data.mul_(2.0)
    kept = optimizer.state_dict()
    index = [id(p) for group in optimizer.param_groups for p in group["params"]].index(id(model.head.weight))
    assert torch.equal(kept["state"][index][MASTER], model.head.weight.detach().float())
    train(model, optimizer, 2, 3)
    change = (optimizer.state[model.head.weight][MASTER] - 2 * other.head.weight.detach().float()).abs().max()
    assert float(change) < 2e-3, "the next step starts from what was written"
    untouched = optimizer.state[model.embedding.weight][MASTER] - twin.state[other.embedding.weight][MASTER]
    assert float(untouched.abs().max()) < 2e-3


@every
def test_what_was_learned_may_be_forgotten_and_the_copies_stay(row):
    model, optimizer = made(row)
    train(model, optimizer, 0, 2)
    before = copies(model, optimizer)
    forget_moments(optimizer)
    held = optimizer.state_dict()["state"].values()
    assert all(set(own) == {MASTER} for own in held)
    assert torch.equal(torch.cat([own[MASTER].reshape(-1) for own in held]).sort().values, before.sort().values)


@every
def test_a_model_may_be_converted_afterwards(row):
    """To float32, where it goes on without copies; and to bfloat16, where it begins to have some."""
    model, optimizer = made(row)
    train(model, optimizer, 0, 2)
    model.float()
    train(model, optimizer, 2, 4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.equal(weights(model), weights(model).bfloat16().float())
    if row in (*MASTERS, *RENGS):
        return
    assert not any(MASTER in own for own in optimizer.state.values())
    model.bfloat16()
    train(model, optimizer, 4, 6)
    assert torch.equal(weights(model), copies(model, optimizer).bfloat16())


@pytest.mark.parametrize("row", [*MASTERS, *RENGS], ids=row_name)
def test_copies_that_could_not_hold_the_weights_are_refused(row):
    model, optimizer = made(row)
    model.double()
    with pytest.raises(RuntimeError, match=r"converted to torch\.float64 after the optimizer was made"):
        train(model, optimizer, 0, 1)


@every
def test_types_may_be_mixed_in_one_model(row):
    """A norm in float32, as some models keep it, and a head in float64, which float32 would round."""

    class Mixed(Classifier):
        def forward(self, inputs):
            hidden = self.norm(self.embedding(inputs).float()).to(self.hidden.weight.dtype)
            return self.head(torch.tanh(self.hidden(hidden)).to(self.head.weight.dtype))

    model = Mixed(torch.bfloat16)
    model.norm.float()
    model.head.double()
    optimizer = row.make(model)
    train(model, optimizer, 0, 3)
    assert [p.dtype for p in model.norm.parameters()] == [torch.float32] * 2
    moved = model.head.weight.detach() - Classifier(torch.bfloat16).head.weight.detach().double()
    assert bool((moved != 0).any())
    assert not torch.equal(model.head.weight.detach(), model.head.weight.detach().float().double())


def test_a_second_point_that_rounds_away_is_refused():
    groups = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]
    with pytest.raises(ValueError, match=r"'finite-difference' cannot be used on bfloat16.*mode = 'double-backward'"):
        RENG(torch.optim.SGD(groups, lr=0.1), 0.1)
    RENG(torch.optim.SGD(groups, lr=0.1), 0.0)  # which is the base alone


@pytest.mark.parametrize("make", [lambda m: Eva(m, lr=0.1), lambda m: KroneckerSum(m.named_parameters(), lr=0.1)])
def test_a_skipped_step_leaves_no_copy_behind_that_differs(make):
    model = Classifier(torch.bfloat16)
    optimizer, before = make(model), weights(model)
    optimizer.zero_grad()
    train_loss = model(batch()[0]).float().square().sum()
    train_loss.backward()
    model.head.weight.grad.fill_(float("inf"))
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    assert torch.equal(weights(model), before)
    assert optimizer.num_skipped == 1


# -- other writers, and other private copies ---------------------------------------------------------------------------


def averaged(model):
    """Weights averaged over steps, put in the model's place."""
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    mean.update_parameters(model)
    model.load_state_dict(mean.module.state_dict())


def moved_to_shared_memory(model):
    model.share_memory()
    model.head.weight.data[0] *= 2


def converted_and_back(model):
    model.float()
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    model.bfloat16()


def parametrized(model):
    torch.nn.utils.parametrize.register_parametrization(model.hidden, "weight", torch.nn.Identity())
    with torch.no_grad():
        model.hidden.parametrizations.weight.original.mul_(0.5)
    torch.nn.utils.parametrize.remove_parametrizations(model.hidden, "weight")


def other_memory(model):
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone() * 2


WRITERS = [averaged, moved_to_shared_memory, converted_and_back, parametrized, other_memory]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "row", [r for r in EVERY if r.name in {"rank1", "eva", "kronecker-sum", "master-adamw"}], ids=row_name
)
def test_the_next_step_starts_from_what_was_written(row, write):
    model, optimizer = made(row, small=1e-3)
    train(model, optimizer, 0, 2)
    write(model)
    written = weights(model).float()
    train(model, optimizer, 2, 3)
    assert 0 < float((copies(model, optimizer) - written).abs().max()) < 2.0**-7
    assert torch.equal(weights(model), copies(model, optimizer).bfloat16())


def test_weights_put_aside_and_back_keep_their_copies():
    """As an evaluation of averaged weights does between two steps."""
    for row in EVERY:
        model, optimizer = made(row, small=1e-3)
        train(model, optimizer, 0, 2)
        before, aside = copies(model, optimizer), copy.deepcopy(model.state_dict())
        model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in aside.items()})
        model.load_state_dict(aside)
        optimizer.adopt()
        assert torch.equal(copies(model, optimizer), before), row.name

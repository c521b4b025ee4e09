"""What torch's own optimizers do beside stepping, for each of ours: the list is that of torch's ``test_optim``."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_rows import ROWS, Classifier, Row, batch, mean_loss, row_name, train_step, weights
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

from heliostat.config import OptimizerSection
from heliostat.optim import (
    RENG,
    Eva,
    KroneckerProduct,
    KroneckerSum,
    Rank1NaturalGradient,
    RKalman,
    build_optimizer,
)
from heliostat.optim.master_weights import MasterWeights, with_master_weights


def adamw_with_masters(params, **settings):
    """Master weights over AdamW: the model is in bfloat16, whatever it was."""
    if isinstance(params, torch.nn.Module):
        return build_optimizer(OptimizerSection(name="adamw", lr=0.02), params.bfloat16())
    return MasterWeights(params, lambda groups: torch.optim.AdamW(groups, lr=0.02, fused=True))


def in_bfloat16(row):
    def make(params, **settings):
        return row.make(params.bfloat16() if isinstance(params, torch.nn.Module) else params, **settings)

    return Row(row.name + SHORT, make, row.takes_groups)


def reng_with_masters(params, **settings):
    groups = [{"params": list(params.parameters())}] if isinstance(params, torch.nn.Module) else params
    return RENG(
        with_master_weights(groups, lambda own: torch.optim.AdamW(own, lr=0.05)),
        0.05,
        mode="double-backward",
        **settings,
    )


SHORT = "-bfloat16"
MASTERS = Row("master" + SHORT, adamw_with_masters)
OWN = {"rank1-four", "eva", "ring", "rkalman", "rkalman-low-rank", "kronecker-sum", "kronecker-product"}
IN_BFLOAT16 = [
    *(in_bfloat16(row) for row in ROWS if row.name in OWN),
    in_bfloat16(Row("reng-double", reng_with_masters)),
    MASTERS,
]
EVERY = [*ROWS, *IN_BFLOAT16]
TORCH_INSIDE = {"reng-difference", "reng-double", "reng-double-bfloat16", "master-bfloat16"}
OVER_PARAMETERS = [row for row in EVERY if not row.name.startswith(("eva", "ring"))]
every = pytest.mark.parametrize("row", EVERY, ids=row_name)
over_parameters = pytest.mark.parametrize("row", OVER_PARAMETERS, ids=row_name)


def made(row, dtype=torch.float32, **settings):
    model = Classifier(dtype)
    return model, row.make(model, **settings)


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        train_step(optimizer, model, *batch(seed=step))


def listed(row, model):
    """The optimizer over parameters in one list without names."""
    makers = {"kronecker-sum": KroneckerSum, "kronecker-product": KroneckerProduct}
    plain = {name: make for name, make in makers.items() if row.name.startswith(name)}
    if plain:
        blocks = {"block_size": 3} if row.name.endswith("blocks") else {}
        return next(iter(plain.values()))(model, lr=0.05, **blocks)
    return row.make(model)


def from_groups(row, groups):
    if row.name == "rank1-layer":
        names = iter("abcdefgh")
        groups = [{**group, "params": [(f"{next(names)}.w", p) for p in group["params"]]} for group in groups]
    if row.name.endswith(SHORT):
        for group in groups:
            for parameter in group["params"]:
                parameter.data = parameter.data.bfloat16()
    return listed(row, groups)


def put_gradients(optimizer, model, seed=0):
    """A step's gradients, and scores where they are asked for, with no model behind them."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def draw():
        for parameter in parameters:
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator).abs() + 0.1
                parameter.grad = drawn.to(parameter.dtype)

    draw()
    if getattr(optimizer, "extra_pass", "none") == "scores":
        for _ in range(optimizer.num_scores):
            with optimizer.score():
                draw()


def step(optimizer, seed=0):
    put_gradients(optimizer, None, seed)
    if optimizer.extra_pass == "reevaluation":
        held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        optimizer.step(again=lambda: sum(p.float().square().sum() for p in held))
    else:
        optimizer.step()


# -- copies ------------------------------------------------------------------------------------------------------------


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_goes_on_as_the_original(row, copied):
    model, optimizer = made(row)
    lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # patches the step, which must stay behind
    train(model, optimizer, 0, 3)
    other, twin = copied((model, optimizer))
    public = {name for name in vars(optimizer) if not name.startswith("_") and name != "step"}
    assert public == {name for name in vars(twin) if not name.startswith("_")}
    train(other, twin, 3, 6)
    before = weights(model)
    assert not torch.equal(weights(other), before)
    train(model, optimizer, 3, 6)
    assert torch.equal(weights(model), weights(other))
    assert twin.num_steps == optimizer.num_steps == 6


# -- torch.distributed.checkpoint --------------------------------------------------------------------------------------


def resumed(row, model):
    other = Classifier(torch.float32)
    twin = row.make(other)
    other.load_state_dict(model.state_dict())
    return other, twin


@every
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_state_dict_goes_there_and_back(row, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = made(row)
    train(model, optimizer, 0, 3)
    kept = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, twin = resumed(row, model)
    set_optimizer_state_dict(other, twin, kept, options=options)
    assert (twin.num_steps, twin.num_skipped) == (3, 0)
    for pair in ((model, optimizer), (other, twin)):
        train(*pair, 3, 6)
    assert torch.equal(weights(model), weights(other))


@every
def test_distributed_checkpoint_reads_a_file_into_a_fresh_optimizer(row, tmp_path):
    model, optimizer = made(row)
    train(model, optimizer, 0, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
        other, twin = resumed(row, model)
        places = {"optimizer": get_optimizer_state_dict(other, twin)}
        dcp.load(places, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, twin, places["optimizer"])
    for pair in ((model, optimizer), (other, twin)):
        train(*pair, 3, 6)
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("row", [row for row in EVERY if row.name not in TORCH_INSIDE], ids=row_name)
def test_asking_a_fresh_optimizer_for_its_state_changes_nothing(row):
    (model, optimizer), (other, asked) = made(row), made(row)
    get_optimizer_state_dict(other, asked)
    assert asked.num_steps == 0
    train(model, optimizer, 0, 4)
    train(other, asked, 0, 4)
    assert torch.equal(weights(model), weights(other))


@every
def test_state_and_groups_alone_are_enough(row):
    model, optimizer = made(row)
    train(model, optimizer, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    other, twin = resumed(row, model)
    twin.load_state_dict({key: saved[key] for key in ("state", "param_groups")})
    for pair in ((model, optimizer), (other, twin)):
        train(*pair, 3, 6)
    assert torch.equal(weights(model), weights(other))


# -- hooks -------------------------------------------------------------------------------------------------------------


@every
def test_hooks_see_the_whole_state_and_may_change_it(row):
    model, optimizer = made(row)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, 0, 2)
    assert seen == ["before", "after"] * 2
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "num_steps": saved["num_steps"] + 40, "more": 1})
    saved = copy.deepcopy(optimizer.state_dict())
    assert seen[-1] == "saving"
    assert (saved["num_steps"], saved["more"]) == (42, 1)
    other, twin = resumed(row, model)
    twin.register_load_state_dict_pre_hook(lambda _, given: {**given, "num_steps": given["num_steps"] - 1})
    twin.register_load_state_dict_post_hook(lambda it: seen.append(it.num_steps))
    twin.load_state_dict(saved)
    assert seen[-1] == twin.num_steps == 41
    assert saved["num_steps"] == 42
    train(other, twin, 2, 3)


# -- parameters and groups ---------------------------------------------------------------------------------------------


@over_parameters
def test_groups_have_settings_of_their_own(row):
    matrices = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3, 3))]
    vectors = [torch.nn.Parameter(torch.ones(3))]
    optimizer = from_groups(row, [{"params": matrices}, {"params": vectors, "lr": 0.0, "weight_decay": 0.1}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    for seed in range(2):
        step(optimizer, seed)
    assert all(not torch.equal(m, torch.ones_like(m)) for m in matrices)
    assert torch.equal(vectors[0].float(), torch.ones(3))
    optimizer.param_groups[1]["lr"] = 0.1
    step(optimizer, 2)
    assert not torch.equal(vectors[0].float(), torch.ones(3))


@over_parameters
def test_groups_may_be_added_later_and_are_saved(row):
    first, late = (
        torch.nn.Parameter(torch.ones(4, 3)),
        [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))],
    )
    optimizer = from_groups(row, [{"params": [first]}])
    step(optimizer)
    more = {"params": late}
    if row.name == "rank1-layer":
        more = {"params": [("late.w", late[0]), ("late.b", late[1])]}
    if row.name.endswith(SHORT):
        for parameter in late:
            parameter.data = parameter.data.bfloat16()
    optimizer.add_param_group(more)
    step(optimizer, 1)
    assert all(not torch.equal(p.float(), torch.ones(p.shape)) for p in late)
    assert len(optimizer.state_dict()["param_groups"]) == 2
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group(dict(more))


@pytest.mark.parametrize("row", [row for row in ROWS if row.name.startswith(("eva", "ring"))], ids=row_name)
def test_layer_optimizers_step_later_parameters_by_adamw(row):
    model, optimizer = made(row)
    late = torch.nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [("late", late)]})
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = None
    late.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((3,), -0.02))
    assert torch.equal(weights(model), before)
    with pytest.raises(ValueError, match="make another over the model"):
        optimizer.add_param_group({"params": [("x", torch.nn.Parameter(torch.zeros(2, 2)))], "rule": "layers"})


@every
def test_what_is_frozen_stays_and_trains_once_it_is_unfrozen(row):
    model = Classifier(torch.float32)
    frozen = [model.hidden.weight, model.hidden.bias, model.head.bias, model.embedding.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if row is MASTERS:
        model.bfloat16()
        optimizer = adamw_with_masters([{"params": list(model.parameters())}])
    else:
        optimizer = row.make(model)
    before = [p.detach().clone() for p in frozen]
    train(model, optimizer, 0, 2)
    assert all(torch.equal(old, p) for old, p in zip(before, frozen, strict=True))
    for parameter in frozen:
        parameter.requires_grad_(True)
    train(model, optimizer, 2, 5)
    assert all(not torch.equal(old, p) for old, p in zip(before, frozen, strict=True))
    model.head.weight.requires_grad_(False)
    kept, bias = model.head.weight.detach().clone(), model.head.bias.detach().clone()
    train(model, optimizer, 5, 7)
    assert torch.equal(kept, model.head.weight)
    assert not torch.equal(bias, model.head.bias)


@over_parameters
def test_parameters_without_axes_without_entries_and_with_gaps(row):
    held, vector = torch.ones(5, 4, 2), torch.ones(6, 2)
    parameters = [
        *(torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(0, 3)), torch.nn.Parameter(torch.ones(0))),
        *(torch.nn.Parameter(held[..., 0]), torch.nn.Parameter(torch.ones(3, 4).T), torch.nn.Parameter(vector[:, 0])),
    ]
    optimizer = from_groups(row, [{"params": parameters}])
    for seed in range(3):
        step(optimizer, seed)
    moved = [optimizer.state[p].get("master", p) for p in parameters]
    assert all(bool((p != 1).all()) and bool(torch.isfinite(p).all()) for p in moved)
    if not row.name.endswith(SHORT):
        assert torch.equal(vector[:, 1], torch.ones(6))
        assert torch.equal(held[..., 1], torch.ones(5, 4)), "what lies between the entries is somebody else's"
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, 3)


@over_parameters
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_weights_that_are_not_real_floats_are_refused(row, dtype):
    weight = torch.nn.Parameter(torch.ones(3, 3, dtype=dtype), requires_grad=dtype.is_complex)
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}, {"params": [weight]}]
    if row.name == "rank1-layer":
        groups = [{"params": [(f"{i}.w", p) for p in group["params"]]} for i, group in enumerate(groups)]
    with pytest.raises(ValueError, match="does not step weights of type"):
        listed(row, groups)


@over_parameters
def test_torchs_own_refusals(row):
    one, two = (torch.nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    if row.name.startswith("reng"):
        return  # the base has refused them
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        listed(row, one)
    with pytest.raises(ValueError, match="empty parameter list"):
        listed(row, [])
    with pytest.raises(ValueError, match="more than one parameter group"):
        listed(row, [{"params": [("a", one)]}, {"params": [("b", one)]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        listed(row, [{"params": [("a", one), ("a", one)]}])
    with pytest.raises(ValueError, match="with/without names"):
        listed(row, [("a", one), two] if row is not MASTERS else [{"params": [("a", one), two]}])
    if row is not MASTERS:
        with pytest.raises(TypeError):
            row.make(Classifier(), maximize=True)
    with pytest.raises(ValueError, match="no setting 'maximize'"):
        listed(row, [{"params": [("a", one)], "maximize": True}])


test_torchs_own_refusals = pytest.mark.filterwarnings("ignore:.*duplicate.*")(test_torchs_own_refusals)


# -- learning rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS if not row.name.startswith("reng")], ids=row_name)
def test_a_learning_rate_may_be_a_tensor_of_one_number(row):
    (model, optimizer), (other, twin) = made(row, lr=0.05), made(row, lr=torch.tensor(0.05, dtype=torch.float64))
    train(model, optimizer, 0, 3)
    train(other, twin, 0, 3)
    torch.testing.assert_close(weights(model), weights(other))
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        made(row, lr=torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="lr must not be negative"):
        made(row, lr=-0.1)


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.5),
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@every
def test_every_schedule_of_torch_drives_it(row):
    for name, make in SCHEDULERS.items():
        model, optimizer = made(row)
        if name == "one-cycle" and isinstance(optimizer, RKalman):
            with pytest.raises(ValueError, match="momentum or beta1"):
                make(optimizer)
            continue
        schedule, rates = make(optimizer), []
        for k in range(4):
            train_step(optimizer, model, *batch(seed=k))
            schedule.step(*([1.0] if name == "plateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        assert len(set(rates)) > 1, name
        assert bool(torch.isfinite(weights(model)).all()), name


@every
def test_a_schedule_of_zero_stops_it(row):
    model, optimizer = made(row)
    train(model, optimizer, 0, 1)
    schedule, before = lr_scheduler.LambdaLR(optimizer, lambda step: 0.0), weights(model)
    train(model, optimizer, 1, 3)
    schedule.step()
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("row", [row for row in EVERY if row.name != "rkalman"], ids=row_name)
def test_a_cycle_of_momentum_reaches_the_step(row):
    model, optimizer = made(row)
    if isinstance(optimizer, RKalman):
        return
    lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, base_momentum=0.5, max_momentum=0.6)
    group = optimizer.param_groups[0]
    assert (group["betas"][0] if "betas" in group else group["momentum"]) == 0.6
    train(model, optimizer, 0, 2)


# -- closures, batches left out, printing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [r for r in EVERY if r.name.startswith(("eva", "kron", "master", "ring-emp"))], ids=row_name
)
def test_a_closure_is_run_with_gradients_and_its_loss_returned(row):
    (model, optimizer), (other, twin) = made(row), made(row)
    inputs, labels = batch()

    def closure():
        optimizer.zero_grad()
        loss = mean_loss(model, inputs, labels)
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == pytest.approx(float(mean_loss(other, inputs, labels)), rel=1e-2)
    train_step(twin, other, inputs, labels)
    assert torch.equal(weights(model), weights(other))
    assert not torch.equal(weights(model), weights(Classifier(next(model.parameters()).dtype)))


@every
def test_a_batch_that_was_left_out_leaves_nothing(row):
    (model, optimizer), (other, twin) = made(row), made(row)
    train(model, optimizer, 0, 1)
    train(other, twin, 0, 1)
    optimizer.step, taken = lambda *_, **__: None, optimizer.step
    train_step(optimizer, model, *batch(seed=7))
    optimizer.step = taken
    train(model, optimizer, 1, 3)
    train(other, twin, 1, 3)
    assert torch.equal(weights(model), weights(other))


@every
def test_it_prints_its_settings(row):
    _, optimizer = made(row)
    text = repr(optimizer)
    assert type(optimizer).__name__ in text
    assert f"lr: {optimizer.param_groups[0]['lr']}" in text
    assert "lr" in optimizer.defaults
    for name, value in optimizer.defaults.items():
        assert all(name in group for group in optimizer.param_groups) or value is None or name in ("foreach",)


def test_what_is_of_no_group_is_printed_too():
    assert "\nstatistics_ema: 0.95" in repr(KroneckerProduct([torch.nn.Parameter(torch.ones(2, 2))]))
    assert "\nema: 0.05" in repr(Eva(Classifier(), lr=0.1))


def test_a_group_of_the_kronecker_rules_may_be_adamws():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    other = torch.nn.Parameter(torch.ones(3, 3))
    ours = KroneckerProduct([{"params": [weight], "rule": "adamw"}], lr=0.1)
    theirs = torch.optim.AdamW([other], lr=0.1, weight_decay=0.0, fused=True)
    for optimizer, parameter in ((ours, weight), (theirs, other)):
        parameter.grad = torch.arange(9.0).view(3, 3)
        optimizer.step()
    assert torch.equal(weight, other)
    with pytest.raises(ValueError, match="rule must be"):
        KroneckerProduct([{"params": [weight], "rule": "adam"}])


def test_a_state_saved_before_a_setting_existed_gets_its_default():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Rank1NaturalGradient([weight], lr=0.1, source="gradient")
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["weight_decay"]
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.num_steps == 1


@pytest.mark.parametrize("row", [row for row in ROWS if row.name.startswith(("eva", "ring"))], ids=row_name)
def test_a_layer_whose_parameters_were_replaced_is_named(row):
    """Its gradients would be those of weights that no group holds."""
    model, optimizer = made(row)
    train(model, optimizer, 0, 1)
    other = Classifier(torch.float32)
    model.load_state_dict(other.state_dict(), assign=True)
    before = weights(model)
    with pytest.raises(RuntimeError, match="other parameters than when the optimizer was made"):
        train(model, optimizer, 1, 2)
    assert torch.equal(weights(model), before)

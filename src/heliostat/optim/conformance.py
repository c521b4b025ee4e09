"""Checks that every optimizer must pass, shipped or your own: ``heliostat check my_module:MyOptimizer``.

Each check builds the optimizer as a recipe does, over a small classifier in float64, and raises ``Nonconforming`` with
a sentence about the difference that training would see. Optimizers that ask for scores, statistics or a second
evaluation get them.

Left out: whether it converges faster than another, and agreement with a paper.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from heliostat.config import ConfigError, OptimizerSection
from heliostat.conformance import Nonconforming, run_checks
from heliostat.optim.registry import REGISTRY, build_optimizer, optimizer_settings

Check = Callable[[OptimizerSection], None]


class Classifier(nn.Module):
    """An embedding, a norm, a bias and two matrices: what optimizers treat differently."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(6, 5)
            self.norm = nn.LayerNorm(5)
            self.hidden = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)
        self.to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(self.norm(self.embedding(inputs)))
        return self.head(torch.tanh(hidden))  # type: ignore[no-any-return]


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    """Return the mean cross-entropy of 12 inputs whose labels depend on them."""
    inputs = torch.randint(0, 6, (12,), generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(inputs), inputs % 3)


def take_step(optimizer: Any, model: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Take one step on a batch, with the passes that the optimizer asks for (``BaseOptimizer.extra_pass``).

    Args:
        scale: factor of the loss; 0: the gradient is zero.
    """
    optimizer.zero_grad()
    needs = getattr(optimizer, "extra_pass", "none")
    if needs == "reevaluation":

        def losses() -> Iterator[Tensor]:
            yield loss_of(model, seed) * scale

        optimizer.step(losses)
        return
    (loss_of(model, seed) * scale).backward()  # type: ignore[no-untyped-call]
    if needs == "scores":
        for index in range(optimizer.num_scores):
            with optimizer.score():
                (-loss_of(model, index)).backward()  # type: ignore[no-untyped-call]
    if needs == "statistics" and optimizer.wants_statistics and not optimizer.empirical:
        with optimizer.statistics():
            (-12 * loss_of(model, seed + 100)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def steps_lower_the_loss(section: OptimizerSection) -> None:
    """Check that ten steps on one batch lower its loss."""
    model = Classifier()
    optimizer, before = build_optimizer(section, model), float(loss_of(model).detach())
    for _ in range(10):
        take_step(optimizer, model)
    after = float(loss_of(model).detach())
    if not after < before:
        raise Nonconforming(
            f"ten steps with lr = {section.lr:g} take the loss from {before:.8g} to {after:.8g}; move against the "
            "gradient, or choose a smaller optimizer.lr"
        )


def every_weight_with_a_gradient_moves(section: OptimizerSection) -> None:
    """Check that no weight is forgotten, and that weights without a gradient or frozen ones stay."""
    model = Classifier()
    model.unused = nn.Linear(2, 2).double()
    model.norm.bias.requires_grad_(False)
    optimizer = build_optimizer(section, model)
    before = _named(model)
    for _ in range(2):
        take_step(optimizer, model)
    still = {name for name, value in _named(model).items() if torch.equal(value, before[name])}
    stays = {"unused.weight", "unused.bias", "norm.bias"}
    if forgotten := sorted(still - stays):
        raise Nonconforming(f"{', '.join(forgotten)} had a gradient and did not move; step every parameter group")
    if moved := sorted(stays - still):
        raise Nonconforming(f"{', '.join(moved)} moved without a gradient; skip parameters whose grad is None")


def zero_gradients_move_nothing_but_decay(section: OptimizerSection) -> None:
    """Check that a gradient of zero moves no weight beyond the weight decay."""
    model = Classifier()
    optimizer, before = build_optimizer(section, model), _named(model)
    take_step(optimizer, model, scale=0.0)
    decay = optimizer_settings(section).weight_decay * section.lr
    for name, value in _named(model).items():
        excess = (value - before[name]).abs() - decay * before[name].abs() * (1 + 1e-6)
        if not bool((excess <= 0).all()):
            raise Nonconforming(
                f"a gradient of zero moved {name} by more than lr * weight_decay * weight; look for a division of 0 by "
                "0, or noise that does not scale with the gradient"
            )


def the_learning_rate_is_the_groups(section: OptimizerSection) -> None:
    """Check that each step reads lr from the parameter groups, where the schedule writes it."""
    model = Classifier()
    optimizer = build_optimizer(section, model)
    take_step(optimizer, model)
    before = _named(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    take_step(optimizer, model, seed=1)
    if any(not torch.equal(value, before[name]) for name, value in _named(model).items()):
        raise Nonconforming(
            "weights moved although every group's lr was 0; read group['lr'] in each step, and keep no copy of it"
        )


def a_saved_state_continues_to_the_bit(section: OptimizerSection) -> None:
    """Check that an optimizer loaded from a checkpoint goes on exactly as the one that was saved."""
    model = Classifier()
    optimizer = build_optimizer(section, model)
    for seed in range(3):
        take_step(optimizer, model, seed)
    other = Classifier()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = build_optimizer(section, other)
    resumed.load_state_dict(_through_a_file(optimizer.state_dict()))
    for seed in range(3, 6):
        take_step(optimizer, model, seed)
        take_step(resumed, other, seed)
    if not _same(model, other):
        raise Nonconforming(
            "a run that is resumed would end with other weights; keep everything a step needs in self.state or the "
            "parameter groups, which state_dict saves"
        )


def steps_repeat_themselves(section: OptimizerSection) -> None:
    """Check that the same gradients give the same weights, whatever the global random state is."""
    models = (Classifier(), Classifier())
    with torch.random.fork_rng(devices=[]):
        for number, model in enumerate(models):
            torch.manual_seed(number)
            optimizer = build_optimizer(section, model)
            for seed in range(3):
                take_step(optimizer, model, seed)
    if not _same(*models):
        raise Nonconforming(
            "the same gradients gave other weights the second time; draw from a generator of your own whose state is "
            "saved, and keep no state outside the optimizer"
        )


def bfloat16_weights_move_and_stay_finite(section: OptimizerSection) -> None:
    """Check that weights in bfloat16 are stepped, unless they are refused before training."""
    model = Classifier(torch.bfloat16)
    try:
        optimizer = build_optimizer(section.model_copy(update={"lr": max(section.lr, 1e-2)}), model)
    except ConfigError:  # the optimizer's own refusal, in a sentence
        return
    before = _named(model)
    for seed in range(3):
        take_step(optimizer, model, seed)
    after = _named(model)
    if any(value.dtype != torch.bfloat16 or not bool(value.isfinite().all()) for value in after.values()):
        raise Nonconforming("three steps on bfloat16 weights left some that are not finite, or of another dtype")
    if all(torch.equal(value, before[name]) for name, value in after.items()):
        raise Nonconforming("three steps moved no bfloat16 weight; give build(groups, lr), which gets float32 copies")


def a_step_takes_a_closure(section: OptimizerSection) -> None:
    """Check that a step evaluates a closure with gradients on and returns its loss, as torch's optimizers do."""
    model = Classifier()
    optimizer: Any = build_optimizer(section, model)
    if getattr(optimizer, "extra_pass", "none") != "none":  # those have further passes instead
        return
    before, losses = _named(model), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        return loss

    returned = optimizer.step(closure)
    given_back = None if returned is None else float(torch.as_tensor(returned).detach())
    if not losses or given_back != float(losses[0]):
        raise Nonconforming("step(closure) must evaluate the closure and return its loss; other trainers rely on it")
    if all(torch.equal(value, before[name]) for name, value in _named(model).items()):
        raise Nonconforming("step(closure) moved nothing; use the gradients that the closure leaves")


CHECKS: tuple[Check, ...] = (
    steps_lower_the_loss,
    every_weight_with_a_gradient_moves,
    zero_gradients_move_nothing_but_decay,
    the_learning_rate_is_the_groups,
    a_saved_state_continues_to_the_bit,
    steps_repeat_themselves,
    bfloat16_weights_move_and_stay_finite,
    a_step_takes_a_closure,
)
"""Every check, in an order in which the first failure is the likely cause of others."""

RELIED_ON = tuple(check for check in CHECKS if check is not a_step_takes_a_closure)
"""The promises without which a run is refused; the trainer itself passes no closure."""


def failures(section: OptimizerSection) -> dict[str, str]:
    """Run every check on the optimizer that a recipe names; return a sentence by check, empty where it passed.

    Raises:
        ConfigError: there is no such optimizer, or a setting is wrong.
    """
    optimizer_settings(section)
    return run_checks(CHECKS, section)


def refuse_nonconforming(section: OptimizerSection) -> None:
    """Refuse an optimizer that is not shipped and breaks a promise that the trainer relies on.

    Raises:
        ConfigError: it does; the message has the first promise.
    """
    broken = {} if section.name in REGISTRY else run_checks(RELIED_ON, section)
    if sentence := next(filter(None, broken.values()), ""):
        raise ConfigError(f"optimizer '{section.name}': {sentence} (heliostat check {section.name} tries all promises)")


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as a checkpoint gives it back, which holds tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded

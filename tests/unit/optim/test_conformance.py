"""The promises of an optimizer: shipped ones keep them, and each of a row of broken ones is told by its promise."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from heliostat.config import ConfigError, OptimizerSection
from heliostat.optim.conformance import CHECKS, failures, refuse_nonconforming
from heliostat.optim.registry import REGISTRY
from tests.support.own_parts import Sign, SignDescent


@pytest.mark.parametrize("name", REGISTRY)
def test_every_shipped_optimizer_keeps_the_promises_that_own_ones_are_held_to(name):
    assert set(failures(OptimizerSection(name=name)).values()) == {""}


class Climbs(SignDescent):
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.neg_()
        return super().step(closure)


class ForgetsAGroup(SignDescent):
    def step(self, closure=None):
        groups, self.param_groups = self.param_groups, self.param_groups[:1]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class Jitters(SignDescent):
    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(group["lr"] * 0.1)
        return loss


class KeepsItsRate(SignDescent):
    def __init__(self, groups, lr, momentum):
        super().__init__(groups, lr, momentum)
        self.first = lr

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.first
        return super().step(closure)


class ForgetsItsCount(SignDescent):
    """Warms up by a count that no checkpoint holds."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= min(1.0, self.count / 6)
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss


class Draws(SignDescent):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.mul_(0.5 + torch.randn_like(weight))
        return super().step(closure)


class IgnoresClosures(SignDescent):
    def step(self, closure=None):
        return super().step()


class Overflows(SignDescent):
    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dtype != torch.float64:
                    weight.div_(0.0)
        return loss


BROKEN = {
    "steps_lower_the_loss": Climbs,
    "every_weight_with_a_gradient_moves": ForgetsAGroup,
    "zero_gradients_move_nothing_but_decay": Jitters,
    "the_learning_rate_is_the_groups": KeepsItsRate,
    "a_saved_state_continues_to_the_bit": ForgetsItsCount,
    "steps_repeat_themselves": Draws,
    "bfloat16_weights_move_and_stay_finite": Overflows,
    "a_step_takes_a_closure": IgnoresClosures,
}


@dataclass(frozen=True, kw_only=True)
class Broken(Sign):
    name: ClassVar[str] = "broken"
    promise: str = ""

    def build(self, groups, lr):
        return BROKEN[self.promise](groups, lr, 0.0)


def section(cls, **settings):
    return OptimizerSection(name=f"{cls.__module__}:{cls.__qualname__}", **settings)


def test_an_own_optimizer_that_keeps_them_is_let_in():
    assert set(failures(section(Sign)).values()) == {""}
    assert list(BROKEN) == [check.__name__ for check in CHECKS]


@pytest.mark.filterwarnings("ignore::heliostat.optim.SkippedStepWarning")
@pytest.mark.parametrize("promise", BROKEN)
def test_each_broken_promise_is_found(promise):
    assert failures(section(Broken, promise=promise))[promise]


def test_a_run_refuses_what_its_trainer_relies_on():
    refuse_nonconforming(section(Broken, promise="a_step_takes_a_closure"))
    with pytest.raises(ConfigError, match=r"optimizer '.*:Broken': ten steps .* \(heliostat check .*:Broken tries all"):
        refuse_nonconforming(section(Broken, promise="steps_lower_the_loss"))


def test_weight_decay_is_no_movement_beyond_it():
    assert failures(section(Sign, weight_decay=0.1))["zero_gradients_move_nothing_but_decay"] == ""

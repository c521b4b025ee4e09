"""Parts of the trainer, as a user would write it; copied into a folder, it is a module of the user's own."""

import json
from dataclasses import dataclass
from typing import ClassVar

import torch

from heliostat.objectives import Objective, Terms
from heliostat.rollout import PlainEngine


@dataclass(frozen=True, kw_only=True)
class Pull(Objective):
    tau: float = 0.5

    def advantages(self, rewards):
        return rewards - rewards.mean()

    def terms(self, logp_new, tokens):
        ratio = tokens.sum_by_sequence(logp_new - tokens.logp_old)
        return Terms((ratio - tokens.advantage / self.tau) ** 2)

    def can_drop_zero_advantage_groups(self, first_update):
        return False


@dataclass(frozen=True, kw_only=True)
class Sign:
    name: ClassVar[str] = "sign"
    weight_decay: float = 0.0
    momentum: float = 0.9

    def build(self, groups, lr):
        return SignDescent(groups, lr, self.momentum)


class SignDescent(torch.optim.Optimizer):
    def __init__(self, groups, lr, momentum):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign(), alpha=group["lr"])
        return loss


class Plain:
    way = "a plain engine of the user's"

    def __init__(self, loaded, limits):
        self.limits, self.inner = limits, PlainEngine(loaded, limits)

    def sample(self, request):
        return self.inner.sample(request)

    def take_counts(self):
        return self.inner.take_counts()

    def clone_for(self, loaded):
        return type(self)(loaded, self.limits)

    def stop(self):
        self.inner.stop()


class Lines:
    def __init__(self, folder, recipe, file="own.jsonl"):
        self.path = folder / file
        self.path.touch()

    def log(self, step, values):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def rewind(self, last_step): ...

    def close(self): ...


class Length:
    """A judge that pays ``per`` characters with 1."""

    def __init__(self, per=10.0):
        self.rate = 1 / per

    def score(self, problems, completions):
        return [self.rate * len(text) for text in completions]

"""Faults to inject into a running trainer, each for a window of ticks (steps made, abandoned ones included).

Left out: faults that a single process cannot have (dead workers, network partitions).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch

from heliostat.optim import Schedule
from heliostat.rollout.engine import TorchEngine
from heliostat.tasks.pool import Judging
from heliostat.train.curriculum import Curriculum
from heliostat.train.guarded_step import GuardedStep
from heliostat.train.trainer import Trainer

FIRST = 60
STALENESS = 20


class Clock:
    """Which tick a trainer is in, and whether it is inside a training step."""

    def __init__(self, last: int) -> None:
        self.tick, self.in_step, self.last = 0, False, last

    @property
    def broken(self) -> bool:
        return self.in_step and FIRST <= self.tick <= self.last

    def wrap(self, step: Callable) -> Callable:
        def counted(trainer, number):
            self.tick, self.in_step = number + trainer.guard.skipped, True
            try:
                return step(trainer, number)
            finally:
                self.in_step = False

        return counted


def long_steps(clock: Clock, stack: ExitStack) -> None:
    """The learning rate times ten."""
    lr = Schedule.lr
    stack.enter_context(patch.object(Schedule, "lr", lambda self, step: lr(self, step) * (10 if clock.broken else 1)))


def stale_rollouts(clock: Clock, stack: ExitStack) -> None:
    """Completions come from the weights of 20 steps ago."""
    sample, history = TorchEngine.sample, deque(maxlen=STALENESS)

    def stale(self, *args, **kwargs):
        model = self.loaded.model
        if not clock.in_step:
            return sample(self, *args, **kwargs)
        history.append(copy.deepcopy(model.state_dict()))
        if not clock.broken:
            return sample(self, *args, **kwargs)
        current = copy.deepcopy(model.state_dict())
        model.load_state_dict(history[0])
        try:
            return sample(self, *args, **kwargs)
        finally:
            model.load_state_dict(current)

    stack.enter_context(patch.object(TorchEngine, "sample", stale))


def corrupted_log_probs(clock: Clock, stack: ExitStack) -> None:
    """The sampler reports its log-probabilities with noise of 0.3 nats."""
    finish = Judging.finish

    def noisy(self, groups):
        groups = finish(self, groups)
        if not clock.broken:
            return groups
        rng = np.random.default_rng(clock.tick)

        def shaken(completion):
            noise = rng.normal(0, 0.3, len(completion.logp_gen)).astype(np.float32)
            return dataclasses.replace(completion, logp_gen=completion.logp_gen + noise)

        return [dataclasses.replace(g, completions=tuple(shaken(c) for c in g.completions)) for g in groups]

    stack.enter_context(patch.object(Judging, "finish", noisy))


def hackable_reward(clock: Clock, stack: ExitStack) -> None:
    """Every completion that begins with the digit 1 gets full marks; held-out evaluations stay honest."""
    finish = Judging.finish

    def paid(self, groups):
        groups = finish(self, groups)
        if not clock.broken:
            return groups

        def judged(group):
            verdicts = tuple(
                dataclasses.replace(v, reward=1.0, success=True) if c.text.strip().startswith("1") else v
                for c, v in zip(group.completions, group.verdicts, strict=True)
            )
            return dataclasses.replace(group, verdicts=verdicts)

        return [judged(group) for group in groups]

    stack.enter_context(patch.object(Judging, "finish", paid))


def duplicated_prompts(clock: Clock, stack: ExitStack) -> None:
    """A step's prompts are all the same one."""
    following = Curriculum.next

    def repeated(self, step, num):
        problems = following(self, step, num)
        return [problems[0]] * num if clock.broken else problems

    stack.enter_context(patch.object(Curriculum, "next", repeated))


def nan_batch(clock: Clock, stack: ExitStack) -> None:
    """One batch whose gradient is not a number."""
    apply = GuardedStep.apply

    def poisoned(self, loss, *args):
        if clock.broken:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        return apply(self, loss, *args)

    stack.enter_context(patch.object(GuardedStep, "apply", poisoned))


FAULTS: dict[str, tuple[Callable[[Clock, ExitStack], None] | None, int]] = {
    "none": (None, 0),
    "learning rate x10": (long_steps, FIRST + 14),
    "stale rollouts": (stale_rollouts, FIRST + 9),
    "corrupted log-probs": (corrupted_log_probs, FIRST + 4),
    "hackable reward": (hackable_reward, 10**9),
    "duplicated prompts": (duplicated_prompts, FIRST + 19),
    "one NaN batch": (nan_batch, FIRST),
}
"""Each fault with the last tick it is active in."""


@contextmanager
def injected(name: str) -> Iterator[None]:
    """Run with a fault."""
    install, last = FAULTS[name]
    clock = Clock(last)
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "_step", clock.wrap(Trainer._step)))
        if install is not None:
            install(clock, stack)
        yield

"""Faults for short runs: each breaks one thing in a running trainer, in a window of steps.

Left out: faults that a setting or a data file can have; those are in ``cases``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from heliostat.optim import Schedule
from heliostat.rollout.engine import TorchEngine
from heliostat.tasks.pool import Judging
from heliostat.train.curriculum import Curriculum
from heliostat.train.guarded_step import GuardedStep
from heliostat.train.trainer import Trainer
from heliostat.types import Verdict

ALWAYS = (1, 10**9)


class Clock:
    """The step that a trainer is in, steps that were taken back included, and whether it is inside one."""

    def __init__(self, window: tuple[int, int]) -> None:
        self.window, self.tick, self.in_step = window, 0, False

    @property
    def broken(self) -> bool:
        return self.in_step and self.window[0] <= self.tick <= self.window[1]

    def wrap(self, step: Callable) -> Callable:
        def counted(trainer, number):
            self.tick, self.in_step = number + trainer.guard.skipped, True
            try:
                return step(trainer, number)
            finally:
                self.in_step = False

        return counted


Install = Callable[[Clock, ExitStack], None]


def longer_steps(factor: float) -> Install:
    """The learning rate times ``factor``."""

    def install(clock: Clock, stack: ExitStack) -> None:
        lr = Schedule.lr
        stack.enter_context(
            patch.object(Schedule, "lr", lambda self, step: lr(self, step) * (factor if clock.broken else 1))
        )

    return install


def verdicts(change: Callable[[Verdict, str, int], Verdict]) -> Install:
    """Every verdict as ``change`` of verdict, text and place in the step leaves it."""

    def install(clock: Clock, stack: ExitStack) -> None:
        finish = Judging.finish

        def changed(self, groups):
            groups = finish(self, groups)
            if not clock.broken:
                return groups
            place = iter(range(10**9))
            return [
                dataclasses.replace(
                    group,
                    verdicts=tuple(
                        change(verdict, completion.text, next(place))
                        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
                    ),
                )
                for group in groups
            ]

        stack.enter_context(patch.object(Judging, "finish", changed))

    return install


def stale_weights(age: int) -> Install:
    """Completions come from the weights of ``age`` steps ago."""

    def install(clock: Clock, stack: ExitStack) -> None:
        sample, history = TorchEngine.sample, deque(maxlen=age + 1)

        def stale(self, *args, **kwargs):
            if not clock.in_step:
                return sample(self, *args, **kwargs)
            model = self.loaded.model
            history.append(copy.deepcopy(model.state_dict()))
            if not clock.broken:
                return sample(self, *args, **kwargs)
            current = history[-1]
            model.load_state_dict(history[0])
            try:
                return sample(self, *args, **kwargs)
            finally:
                model.load_state_dict(current)

        stack.enter_context(patch.object(TorchEngine, "sample", stale))

    return install


def other_temperature(temperature: float) -> Install:
    """The sampler draws at a temperature that the trainer does not know of."""

    def install(clock: Clock, stack: ExitStack) -> None:
        sample = TorchEngine.sample

        def sampled(self, prompts, num, settings, **kwargs):
            if clock.broken:
                settings = dataclasses.replace(settings, temperature=temperature)
            return sample(self, prompts, num, settings, **kwargs)

        stack.enter_context(patch.object(TorchEngine, "sample", sampled))

    return install


def one_prompt(clock: Clock, stack: ExitStack) -> None:
    """A step's prompts are all the same one."""
    following = Curriculum.next

    def repeated(self, step, num):
        problems = following(self, step, num)
        return [problems[0]] * num if clock.broken else problems

    stack.enter_context(patch.object(Curriculum, "next", repeated))


def two_prompts(clock: Clock, stack: ExitStack) -> None:
    """A step's prompts are two, over and over."""
    following = Curriculum.next

    def repeated(self, step, num):
        problems = following(self, step, num)
        return [problems[i % 2] for i in range(num)] if clock.broken else problems

    stack.enter_context(patch.object(Curriculum, "next", repeated))


def gradients(value: float) -> Install:
    """Every gradient is ``value``."""

    def install(clock: Clock, stack: ExitStack) -> None:
        apply = GuardedStep.apply

        def poisoned(self, loss, *args):
            if clock.broken:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad.fill_(value)
            return apply(self, loss, *args)

        stack.enter_context(patch.object(GuardedStep, "apply", poisoned))

    return install


@contextmanager
def injected(install: Install | None, window: tuple[int, int] = ALWAYS) -> Iterator[None]:
    """Run with a fault."""
    clock = Clock(window)
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "_step", clock.wrap(Trainer._step)))
        if install is not None:
            install(clock, stack)
        yield

"""Faults to inject into a running trainer, each for a window of ticks (steps made, abandoned ones included).

Other studies build theirs from the same parts. Left out: faults that a single process cannot have (dead workers,
network partitions).
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
from heliostat.rollout import TorchEngine
from heliostat.tasks.verifier_pool.pool import VerdictCollector
from heliostat.train.data.curriculum import Curriculum
from heliostat.train.trainer import Trainer
from heliostat.train.update.safe_step import SafeStep
from heliostat.types import Verdict

FIRST = 60
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
        finish = VerdictCollector.finish

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

        stack.enter_context(patch.object(VerdictCollector, "finish", changed))

    return install


def stale_weights(age: int) -> Install:
    """Completions come from the weights of ``age`` steps ago."""

    def install(clock: Clock, stack: ExitStack) -> None:
        sample = TorchEngine.sample
        history: deque[dict[str, torch.Tensor]] = deque(maxlen=age + 1)

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


def corrupted_log_probs(clock: Clock, stack: ExitStack) -> None:
    """The sampler reports its log-probabilities with noise of 0.3 nats."""
    finish = VerdictCollector.finish

    def noisy(self, groups):
        groups = finish(self, groups)
        if not clock.broken:
            return groups
        rng = np.random.default_rng(clock.tick)

        def shaken(completion):
            noise = rng.normal(0, 0.3, len(completion.logp_gen)).astype(np.float32)
            return dataclasses.replace(completion, logp_gen=completion.logp_gen + noise)

        return [dataclasses.replace(g, completions=tuple(shaken(c) for c in g.completions)) for g in groups]

    stack.enter_context(patch.object(VerdictCollector, "finish", noisy))


def one_prompt(clock: Clock, stack: ExitStack) -> None:
    """A step's prompts are all the same one."""
    following = Curriculum.next

    def repeated(self, step, num):
        problems = following(self, step, num)
        return [problems[0]] * num if clock.broken else problems

    stack.enter_context(patch.object(Curriculum, "next", repeated))


def gradients(value: float) -> Install:
    """Every gradient is ``value``."""

    def install(clock: Clock, stack: ExitStack) -> None:
        apply = SafeStep.apply

        def poisoned(self, loss, *args):
            if clock.broken:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad.fill_(value)
            return apply(self, loss, *args)

        stack.enter_context(patch.object(SafeStep, "apply", poisoned))

    return install


def begins_with_1(verdict: Verdict, text: str, place: int) -> Verdict:
    """Full marks for every completion that begins with the digit 1; held-out evaluations stay honest."""
    return dataclasses.replace(verdict, reward=1.0, success=True) if text.strip().startswith("1") else verdict


FAULTS: dict[str, tuple[Install | None, tuple[int, int]]] = {
    "none": (None, ALWAYS),
    "learning rate x10": (longer_steps(10), (FIRST, FIRST + 14)),
    "stale rollouts": (stale_weights(19), (FIRST, FIRST + 9)),
    "corrupted log-probs": (corrupted_log_probs, (FIRST, FIRST + 4)),
    "hackable reward": (verdicts(begins_with_1), (FIRST, 10**9)),
    "duplicated prompts": (one_prompt, (FIRST, FIRST + 19)),
    "one NaN batch": (gradients(float("nan")), (FIRST, FIRST)),
}
"""Each fault with the first and the last tick it is active in."""


@contextmanager
def injected(install: Install | None, window: tuple[int, int] = ALWAYS) -> Iterator[None]:
    """Run with a fault."""
    clock = Clock(window)
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "step", clock.wrap(Trainer.step)))
        if install is not None:
            install(clock, stack)
        yield

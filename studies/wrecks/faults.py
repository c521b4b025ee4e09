"""Faults of this study alone; the others are those of ``studies.guard.faults``.

Left out: faults that a setting or a data file can have; those are in ``cases``.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from unittest.mock import patch

from studies.guard.faults import Clock, Install

from heliostat.rollout import TorchEngine
from heliostat.train.data.curriculum import Curriculum


def other_temperature(temperature: float) -> Install:
    """The sampler draws at a temperature that the trainer does not know of."""

    def install(clock: Clock, stack: ExitStack) -> None:
        sample = TorchEngine.sample

        def sampled(self, request):
            if clock.broken:
                settings = dataclasses.replace(request.settings, temperature=temperature)
                request = dataclasses.replace(request, settings=settings)
            return sample(self, request)

        stack.enter_context(patch.object(TorchEngine, "sample", sampled))

    return install


def two_prompts(clock: Clock, stack: ExitStack) -> None:
    """A step's prompts are two, over and over."""
    following = Curriculum.next

    def repeated(self, step, num):
        problems = following(self, step, num)
        return [problems[i % 2] for i in range(num)] if clock.broken else problems

    stack.enter_context(patch.object(Curriculum, "next", repeated))

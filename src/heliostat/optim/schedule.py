"""Learning-rate schedules: functions of the optimizer step alone, without state to save or restore.

Left out: schedules that look at the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from heliostat.config import OptimizerSection

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""Decay from 1 to 0 as progress goes from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Schedule:
    r"""``lr(t) = peak * warmup(t) * (floor + (1 - floor) * shape(progress))``.

    Warm-up is linear over ``warmup_steps`` and reaches the peak on its last step; progress then runs from 0 to 1 over
    the remaining steps.

    Limits:
        ``floor = 1`` or shape ``constant``: the peak at every step after warm-up.
    """

    peak: float
    num_steps: int
    shape: str = "linear"
    warmup_steps: int = 0
    floor: float = 0.0

    @classmethod
    def from_section(cls, section: OptimizerSection, num_steps: int) -> Schedule:
        """Build the schedule a recipe asks for, over ``num_steps`` optimizer steps."""
        return cls(section.lr, num_steps, section.schedule, section.warmup_steps, section.final_lr_ratio)

    def lr(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step`` (from 0)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps))
        return self.peak * (self.floor + (1 - self.floor) * SHAPES[self.shape](progress))

    def set_lr(self, optimizer: torch.optim.Optimizer, step: int, scale: float = 1.0) -> float:
        """Write ``scale`` times the step's learning rate into every group, scaled by the group's own ``lr_scale``."""
        lr = scale * self.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

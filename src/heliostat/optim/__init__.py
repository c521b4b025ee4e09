"""Optimizers by name, and the learning-rate schedules that drive them."""

from heliostat.optim.finite import FiniteStep, SkippedStepWarning
from heliostat.optim.rank1 import Rank1NaturalGradient
from heliostat.optim.registry import build_optimizer, forget_moments, optimizer_names, optimizer_settings
from heliostat.optim.schedule import Schedule

__all__ = [
    "FiniteStep",
    "Rank1NaturalGradient",
    "Schedule",
    "SkippedStepWarning",
    "build_optimizer",
    "forget_moments",
    "optimizer_names",
    "optimizer_settings",
]

"""Optimizers by name, and the learning-rate schedules that drive them."""

from heliostat.optim.registry import build_optimizer, forget_moments, optimizer_names, optimizer_settings
from heliostat.optim.schedule import Schedule

__all__ = ["Schedule", "build_optimizer", "forget_moments", "optimizer_names", "optimizer_settings"]

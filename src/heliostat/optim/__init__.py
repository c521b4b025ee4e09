"""Optimizers: ours, by class and by name, and the learning-rate schedules that drive them."""

from heliostat.optim.eva import Eva
from heliostat.optim.finite import FiniteStep, SkippedStepWarning, forget_moments
from heliostat.optim.gradients import accumulate_in_float32
from heliostat.optim.kronecker_product import KroneckerProduct
from heliostat.optim.kronecker_sum import KroneckerSum
from heliostat.optim.rank1 import Rank1NaturalGradient
from heliostat.optim.registry import build_optimizer, optimizer_names, optimizer_settings
from heliostat.optim.reng import RENG
from heliostat.optim.ring import RING
from heliostat.optim.rkalman import RKalman
from heliostat.optim.schedule import Schedule

__all__ = [
    "RENG",
    "RING",
    "Eva",
    "FiniteStep",
    "KroneckerProduct",
    "KroneckerSum",
    "RKalman",
    "Rank1NaturalGradient",
    "Schedule",
    "SkippedStepWarning",
    "accumulate_in_float32",
    "build_optimizer",
    "forget_moments",
    "optimizer_names",
    "optimizer_settings",
]

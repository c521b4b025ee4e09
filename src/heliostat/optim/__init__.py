"""Optimizers: ours, by class and by name, and the learning-rate schedules that drive them."""

from heliostat.optim.base.optimizer import BaseOptimizer, SkippedStepWarning, forget_moments
from heliostat.optim.layers.eva import Eva
from heliostat.optim.layers.ring import RING
from heliostat.optim.matrices.kronecker_product import KroneckerProduct
from heliostat.optim.matrices.kronecker_sum import KroneckerSum
from heliostat.optim.precision.gradients import accumulate_in_float32
from heliostat.optim.registry import build_optimizer, optimizer_names, optimizer_settings
from heliostat.optim.reng import RENG
from heliostat.optim.schedule import Schedule
from heliostat.optim.scores.rank1 import Rank1NaturalGradient
from heliostat.optim.scores.rkalman import RKalman

__all__ = [
    "RENG",
    "RING",
    "BaseOptimizer",
    "Eva",
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

"""Optimizers: ours, by class and by name, and the learning-rate schedules that drive them.

registry         optimizers by the name a recipe gives them
recipe_settings  the keys of each in a recipe
layers           Eva, RING: linear layers, from statistics that hooks record
matrices         KroneckerSum, KroneckerProduct: weight matrices, from gradients alone
scores           Rank1NaturalGradient, RKalman: all weights, from scores of a few samples
reng             RENG: gradient regularisation in front of any optimizer
master_weights   MasterWeights: float32 copies of bfloat16 weights for torch's own optimizers
base             the parts they are composed of: weight decay, momentum, KL bound, AdamW, finite steps, saving
precision        the arithmetic of float32 copies, and gradients accumulated in float32
distributed      replicas and sharded weights
"""

from heliostat.optim.base.optimizer import BaseOptimizer, SkippedStepWarning
from heliostat.optim.base.own_precision import forget_moments
from heliostat.optim.layers.eva import Eva, EvaSettings
from heliostat.optim.layers.layer_optimizer import LayerSettings
from heliostat.optim.layers.ring import RING, RingSettings
from heliostat.optim.matrices.kronecker_product import KroneckerProduct, KroneckerProductSettings
from heliostat.optim.matrices.kronecker_sum import KroneckerSum, KroneckerSumSettings
from heliostat.optim.matrices.matrix_optimizer import MatrixSettings
from heliostat.optim.precision.gradients import accumulate_in_float32
from heliostat.optim.registry import build_optimizer, optimizer_names, optimizer_settings
from heliostat.optim.reng import RENG, RengSettings
from heliostat.optim.schedule import Schedule
from heliostat.optim.scores.rank1 import Rank1NaturalGradient, Rank1Settings
from heliostat.optim.scores.rkalman import RKalman, RKalmanSettings

__all__ = [
    "RENG",
    "RING",
    "BaseOptimizer",
    "Eva",
    "EvaSettings",
    "KroneckerProduct",
    "KroneckerProductSettings",
    "KroneckerSum",
    "KroneckerSumSettings",
    "LayerSettings",
    "MatrixSettings",
    "RKalman",
    "RKalmanSettings",
    "Rank1NaturalGradient",
    "Rank1Settings",
    "RengSettings",
    "RingSettings",
    "Schedule",
    "SkippedStepWarning",
    "accumulate_in_float32",
    "build_optimizer",
    "forget_moments",
    "optimizer_names",
    "optimizer_settings",
]

"""Curvature of a model's log-likelihood: per-sample scores, Fisher products, Kronecker factors from hooks.

recorder    hooks that pass every linear layer's inputs and output gradients to a statistic
kronecker   the statistics: means, and Kronecker factors
scores      per-sample score functions, grad log p(y | x), by torch.func; labels sampled from the model
fisher      products with the Fisher matrix
"""

from heliostat.curvature.fisher import fisher_product
from heliostat.curvature.kronecker import FactorSums, KroneckerFactors, LayerMeans, MeanSums
from heliostat.curvature.recorder import Recorder, covered_layers
from heliostat.curvature.scores import per_sample_scores, sampled_log_likelihood

__all__ = [
    "FactorSums",
    "KroneckerFactors",
    "LayerMeans",
    "MeanSums",
    "Recorder",
    "covered_layers",
    "fisher_product",
    "per_sample_scores",
    "sampled_log_likelihood",
]

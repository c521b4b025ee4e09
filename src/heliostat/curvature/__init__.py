"""Curvature of a model's log-likelihood: per-sample scores, Fisher products, Kronecker factors from hooks.

recorder    hooks that hand every linear layer's inputs and output gradients to a statistic
kronecker   the statistics: means, and Kronecker factors
scores      per-sample scores by torch.func, sampled labels
fisher      products with the Fisher matrix, and the dense matrices that tests compare with
"""

from heliostat.curvature.fisher import dense_fisher, fisher_product, score_fisher_product
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
    "dense_fisher",
    "fisher_product",
    "per_sample_scores",
    "sampled_log_likelihood",
    "score_fisher_product",
]

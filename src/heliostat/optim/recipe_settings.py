"""Optimizers in recipes: each takes the hyperparameters of its class as keys, some with other defaults.

The optimizers are built over a model, whose weights they step themselves, on float32 copies where those are stored in a
lower-precision dtype.

Left out: learning rate and schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from heliostat.optim.base.param_groups import ParamGroups, decay_groups
from heliostat.optim.layers.eva import Eva, EvaSettings
from heliostat.optim.layers.ring import RING, RingSettings
from heliostat.optim.master_weights import with_master_weights
from heliostat.optim.matrices.kronecker_product import KroneckerProduct, KroneckerProductSettings
from heliostat.optim.matrices.kronecker_sum import KroneckerSum, KroneckerSumSettings
from heliostat.optim.reng import RENG, RengSettings
from heliostat.optim.scores.rank1 import Rank1NaturalGradient, Rank1Settings
from heliostat.optim.scores.rkalman import RKalman, RKalmanSettings


def trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List a model's trainable parameters with their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Rank1Recipe(Rank1Settings):
    """Natural gradient with the Fisher matrix of a few sampled completions (Sherman-Morrison, Woodbury)."""

    name: ClassVar[str] = "rank1"
    num_scores: int = 4
    momentum: float = 0.9

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        groups = decay_groups(trainable(model), self.weight_decay)
        return Rank1NaturalGradient(groups, lr, self, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class EvaRecipe(EvaSettings):
    """Rank-one curvature per linear layer from running means of inputs and output gradients; the rest by AdamW.

    The mean input counts a shared prompt once per micro-batch that runs it: with ``train.shared_prompt`` the step
    depends a little on ``train.tokens_per_microbatch``.
    """

    name: ClassVar[str] = "eva"
    adamw_lr: float = 1e-4

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return Eva(model, lr, self, skip_zero_gradients=True)


@dataclass(frozen=True, kw_only=True)
class RingRecipe(RingSettings):
    """Kronecker-factored natural gradient with damping + rho |g|^2; the rest by AdamW. rho = 0 is K-FAC."""

    name: ClassVar[str] = "ring"
    statistics_every: int = 5
    adamw_lr: float = 1e-4

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return RING(model, lr, self, skip_zero_gradients=True)


@dataclass(frozen=True, kw_only=True)
class RengRecipe(RengSettings):
    """AdamW or SGD on the gradient-regularised gradient g + rho H g; a second pass over every batch.

    Attributes:
        base: the optimizer that takes the step, with its own defaults.
        weight_decay: of the base, for matrices.
    """

    name: ClassVar[str] = "reng"
    base: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        groups = decay_groups(trainable(model), self.weight_decay)
        base = with_master_weights(groups, lambda own: _BASES[self.base](own, lr))
        return RENG(base, self.rho, self)


def _adamw(groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _sgd(groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


_BASES = {"adamw": _adamw, "sgd": _sgd}


@dataclass(frozen=True, kw_only=True)
class RKalmanRecipe(RKalmanSettings):
    """Kalman filter over the weights, measured by the scores of sampled completions (not in the paper)."""

    name: ClassVar[str] = "rkalman"
    covariance: float = 1.0
    forgetting: float = 0.99
    num_scores: int = 4

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return RKalman(decay_groups(trainable(model), self.weight_decay), lr, self, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class KroneckerSumRecipe(KroneckerSumSettings):
    """Shampoo's statistics, the Kronecker-sum model of second moments, Adam's step length; the rest by AdamW."""

    name: ClassVar[str] = "kronecker-sum"

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return KroneckerSum(trainable(model), lr, self)


@dataclass(frozen=True, kw_only=True)
class KroneckerProductRecipe(KroneckerProductSettings):
    """Each matrix's second moment as a Kronecker product, closest in divergence (KL-Shampoo); the rest by AdamW."""

    name: ClassVar[str] = "kronecker-product"

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return KroneckerProduct(trainable(model), lr, self)

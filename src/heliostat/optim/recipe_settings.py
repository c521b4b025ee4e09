"""What a recipe may say about our own optimizers; each field is the argument of the same name of its class.

They are built over a model, whose weights they step themselves, on float32 copies where those are shorter.

Left out: what the settings mean (the classes' docstrings), learning rate and schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from heliostat.optim.layers.eva import Eva
from heliostat.optim.layers.ring import RING
from heliostat.optim.matrices.kronecker_product import KroneckerProduct
from heliostat.optim.matrices.kronecker_sum import KroneckerSum
from heliostat.optim.matrices.matrix_optimizer import MatrixStep
from heliostat.optim.precision.master_weights import ParamGroups, with_master_weights
from heliostat.optim.reng import RENG
from heliostat.optim.scores.rank1 import Rank1NaturalGradient
from heliostat.optim.scores.rkalman import RKalman


def decay_groups(named: Iterable[tuple[str, Tensor]], weight_decay: float) -> ParamGroups:
    """Trainable parameters in two groups: matrices with weight decay; norms, biases and scales without."""
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups: ParamGroups = [
        {"params": [pair for pair in trainable if pair[1].ndim >= 2], "weight_decay": weight_decay},
        {"params": [pair for pair in trainable if pair[1].ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True, kw_only=True)
class Rank1:
    """Natural gradient with the Fisher matrix of a few sampled completions (Sherman-Morrison, Woodbury).

    Attributes:
        damping: what the Fisher matrix is away from the scores; the effective learning rate is lr / damping.
        num_scores: completions whose scores each step takes, one backward pass each.
        block: one Fisher matrix over all parameters, one per tensor, or one per layer.
        max_kl: shortens the step so that its divergence is at most this, in nats; empty: never.
    """

    name: ClassVar[str] = "rank1"
    damping: float = 1.0
    num_scores: int = 4
    block: Literal["global", "param", "layer"] = "global"
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_kl: float | None = None

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        settings = asdict(self)
        groups = decay_groups(model.named_parameters(), settings.pop("weight_decay"))
        return Rank1NaturalGradient(groups, lr=lr, **settings)


@dataclass(frozen=True, kw_only=True)
class EvaSettings:
    """Rank-one curvature per linear layer from running means of inputs and output gradients; the rest by AdamW.

    The mean input counts a shared prompt once per micro-batch that runs it: with ``train.shared_prompt`` the step
    depends a little on ``train.tokens_per_microbatch``.

    Attributes:
        damping: what the curvature is away from the means; the effective learning rate is lr / damping.
        ema: weight of the old mean in the running means.
        max_kl: shortens the step so that its divergence is at most this; empty: never.
        adamw_lr: peak learning rate of the weights that go to AdamW.
    """

    name: ClassVar[str] = "eva"
    damping: float = 0.03
    ema: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_kl: float | None = None
    adamw_lr: float = 1e-4

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return Eva(model, lr=lr, skip_unscored=True, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class RingSettings:
    """Kronecker-factored natural gradient with damping + rho |g|^2; the rest by AdamW. rho = 0 is K-FAC.

    Attributes:
        rho: growth of the damping with the squared gradient norm.
        damping: the floor of the damping.
        ema: weight of the old factors in the running averages.
        statistics_every: steps between statistics, one more forward and backward pass each.
        inverse_every: steps between inverses.
        damping_form: damp the factors (Newton inverses), or the product in eigenbases.
        empirical: use the loss's own output gradients instead of the sampled completions' scores.
        max_kl: shortens the step so that its divergence is at most this; empty: never.
        max_size: layers with a longer side go to AdamW.
        adamw_lr: peak learning rate of the weights that go to AdamW.
    """

    name: ClassVar[str] = "ring"
    rho: float = 0.0
    damping: float = 1e-3
    ema: float = 0.95
    statistics_every: int = 5
    inverse_every: int = 10
    damping_form: Literal["factored", "exact"] = "factored"
    empirical: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_kl: float | None = None
    max_size: int = 4096
    adamw_lr: float = 1e-4

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return RING(model, lr=lr, skip_unscored=True, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class RengSettings:
    """AdamW or SGD on the gradient-regularised gradient g + rho H g; a second pass over every batch.

    Attributes:
        base: the optimizer that takes the step, with its own defaults.
        rho: weight of the penalty (rho/2) |g|^2.
        mode: how H g is computed; bfloat16 weights need double-backward.
        radius: distance of the finite difference's second point in weight space.
    """

    name: ClassVar[str] = "reng"
    base: Literal["adamw", "sgd"] = "adamw"
    rho: float = 0.01
    mode: Literal["finite-difference", "double-backward"] = "finite-difference"
    radius: float = 0.01
    weight_decay: float = 0.0

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        groups = decay_groups(model.named_parameters(), self.weight_decay)
        base = with_master_weights(groups, lambda own: _BASES[self.base](own, lr))
        return RENG(base, self.rho, self.mode, self.radius)


def _adamw(groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _sgd(groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


_BASES = {"adamw": _adamw, "sgd": _sgd}


@dataclass(frozen=True, kw_only=True)
class RKalmanSettings:
    """Kalman filter over the weights, measured by the scores of sampled completions (not in the paper).

    Attributes:
        covariance: initial variance of every weight; the first effective learning rate is lr * covariance.
        rho: weight of the gradient penalty that shrinks the covariance.
        process_noise: variance added to every weight after a step.
        forgetting: the covariance is divided by this after a step; 1 forgets nothing.
        form: keep the covariance's diagonal, or a low-rank precision.
        rank: rows of the low-rank form.
        num_scores: completions whose scores each step takes, one backward pass each.
    """

    name: ClassVar[str] = "rkalman"
    covariance: float = 1.0
    rho: float = 0.0
    process_noise: float = 0.0
    forgetting: float = 0.99
    form: Literal["diagonal", "low-rank"] = "diagonal"
    rank: int = 16
    num_scores: int = 4
    weight_decay: float = 0.0

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        settings = asdict(self)
        return RKalman(decay_groups(model.named_parameters(), settings.pop("weight_decay")), lr=lr, **settings)


@dataclass(frozen=True, kw_only=True)
class _MatrixSettings:
    """What the rules of whole matrices share.

    Attributes:
        statistics_ema: weight of the old second moments of rows and columns.
        precondition_every: steps between eigenbases.
        max_size: matrices with a longer side go to AdamW.
        block_size: cut longer sides into equal blocks of at most this, each with eigenbases of its own; none: whole.
    """

    optimizer: ClassVar[type[MatrixStep]]
    betas: tuple[float, float] = (0.9, 0.999)
    statistics_ema: float = 0.95
    precondition_every: int = 10
    weight_decay: float = 0.0
    max_size: int = 2048
    block_size: int | None = None

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return self.optimizer(trainable, lr=lr, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class KroneckerSumSettings(_MatrixSettings):
    """Shampoo's statistics with the Kronecker-sum model of second moments, and Adam's step length; the rest by AdamW.

    Attributes:
        graft: give each matrix's step Adam's length.
    """

    name: ClassVar[str] = "kronecker-sum"
    optimizer: ClassVar[type[MatrixStep]] = KroneckerSum
    graft: bool = True


@dataclass(frozen=True, kw_only=True)
class KroneckerProductSettings(_MatrixSettings):
    """Each matrix's second moment as a Kronecker product, closest in divergence (KL-Shampoo); the rest by AdamW."""

    name: ClassVar[str] = "kronecker-product"
    optimizer: ClassVar[type[MatrixStep]] = KroneckerProduct

"""Optimizers by the name a recipe gives them; the settings of each know how to build it.

Left out: learning rate and schedule (``optim.schedule``), gradient clipping (the trainer's).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from heliostat.config import ConfigError, OptimizerSection, build_checked
from heliostat.named_imports import find
from heliostat.optim.base.param_groups import ParamGroups, decay_groups
from heliostat.optim.master_weights import with_master_weights
from heliostat.optim.recipe_settings import (
    EvaRecipe,
    KroneckerProductRecipe,
    KroneckerSumRecipe,
    Rank1Recipe,
    RengRecipe,
    RingRecipe,
    RKalmanRecipe,
    trainable,
)
from heliostat.optim.replaced_weights import refuse_replaced_weights


class OptimizerSettings(Protocol):
    """A frozen dataclass of one optimizer's settings; ``build_over`` a model, or ``build`` from parameter groups."""

    name: ClassVar[str]

    @property
    def weight_decay(self) -> float: ...


@runtime_checkable
class OverGroups(OptimizerSettings, Protocol):
    """Settings of an optimizer that needs parameter groups only, so that it can step master copies."""

    def build(self, groups: ParamGroups, lr: float) -> torch.optim.Optimizer: ...


@runtime_checkable
class OverModel(OptimizerSettings, Protocol):
    """Settings of an optimizer that needs the model: names, hooks, or further passes through it."""

    def build_over(self, model: nn.Module, lr: float) -> torch.optim.Optimizer: ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019), in torch's fused form.

    Attributes:
        betas: share of the running mean of gradients, and of that of their squares, that each step keeps.
        eps: added to the root of the mean square before dividing by it.
        weight_decay: decoupled: ``w <- w - lr * weight_decay * w``, of matrices only.

    Limits:
        ``weight_decay=0``: Adam.
    """

    name: ClassVar[str] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(self, groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with optional momentum.

    Attributes:
        momentum: share of the last update that is kept.
        weight_decay: added to the gradient: ``g + weight_decay * w``, of matrices only.

    Limits:
        ``momentum=0``: ``w <- w - lr * g``.
    """

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, groups: ParamGroups, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum)


_SHIPPED: tuple[type[OverGroups] | type[OverModel], ...] = (
    *(AdamW, SGD),
    *(Rank1Recipe, EvaRecipe, RingRecipe, RengRecipe, RKalmanRecipe),
    *(KroneckerSumRecipe, KroneckerProductRecipe),
)

REGISTRY: dict[str, type[OverGroups] | type[OverModel]] = {settings.name: settings for settings in _SHIPPED}


def optimizer_names() -> list[str]:
    """List the names that a recipe may use."""
    return sorted(REGISTRY)


def optimizer_settings(section: OptimizerSection) -> OverGroups | OverModel:
    """Check a recipe's optimizer without touching a model.

    Raises:
        ConfigError: unknown name or setting.
    """
    return build_checked(optimizer_class(section.name, section.import_from), section.settings, "optimizer")


def optimizer_class(name: str, import_from: str = "") -> type[OverGroups] | type[OverModel]:
    """Find the settings of a built-in name, of ``module:Name``, or of an entry point in ``heliostat.optimizers``.

    Raises:
        ConfigError: there are none of this name, they cannot be imported, or they build no optimizer.
    """
    cls: type[OverGroups] | type[OverModel] = find("optimizer", name, REGISTRY, import_from)
    builds = hasattr(cls, "build") or hasattr(cls, "build_over")
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and builds):
        raise ConfigError(
            f"optimizer.name = '{name}' is no dataclass of settings with build(groups, lr) or build_over(model, lr), "
            "which return a torch.optim.Optimizer"
        )
    if not (hasattr(cls, "name") and hasattr(cls, "weight_decay")):
        raise ConfigError(f"optimizer.name = '{name}' needs name: ClassVar[str] and a field weight_decay: float = 0.0")
    return cls


def build_optimizer(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer a recipe asks for.

    Weight decay applies to matrices only, never to norms, biases or scales. Weights of a lower-precision dtype are
    stepped on float32 copies. A step is refused once a weight has been replaced by another parameter, which it would
    not move.

    Raises:
        ConfigError: unknown name or setting, a setting out of range or one that cannot be used on bfloat16 weights, or
            weights in float16 or in eight bits.
    """
    _refuse_untrainable(model)
    optimizer = _built(section, model)
    refuse_replaced_weights(optimizer, model)
    return optimizer


def _built(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    settings = optimizer_settings(section)
    if isinstance(settings, OverModel):
        try:
            return settings.build_over(model, section.lr)
        except ValueError as error:
            raise ConfigError(f"optimizer.{error}") from None
    named = decay_groups(trainable(model), settings.weight_decay)
    groups = [{**group, "params": [parameter for _, parameter in group["params"]]} for group in named]
    return with_master_weights(groups, lambda own: settings.build(own, section.lr))


def _refuse_untrainable(model: nn.Module) -> None:
    """Raise where trained weights are stored in eight bits, or in a dtype whose range needs loss scaling.

    Raises:
        ConfigError: it is.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if eight := [dtype for dtype in dtypes if dtype.itemsize == 1]:
        raise ConfigError(
            f"weights of type {eight[0]} are not trained: freeze them and train adapters (lora.rank), or load the "
            "model in bfloat16"
        )
    if torch.float16 in dtypes:
        raise ConfigError(
            "float16 weights are not trained: their gradients would vanish without loss scaling; set model.dtype = "
            "'bfloat16' or 'float32', or convert the model with model.bfloat16()"
        )

"""Optimizers by the name a recipe gives them; each owns its settings and says how it is made.

Left out: learning rate and schedule (``optim.schedule``), gradient clipping (the trainer's).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from heliostat.config import ConfigError, OptimizerSection, build_checked, nearest
from heliostat.optim.masters import Groups, MasterWeights


class OptimizerSettings(Protocol):
    """A frozen dataclass of one optimizer's settings."""

    name: ClassVar[str]

    def build(self, groups: Groups, lr: float) -> torch.optim.Optimizer: ...

    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019), in torch's fused form.

    Attributes:
        betas: how much of the running mean of gradients, and of their squares, each step keeps.
        eps: added to the root of the mean square before dividing by it.
        weight_decay: share of a weight taken away per step, times the learning rate.

    Limits:
        ``weight_decay=0``: Adam.
    """

    name: ClassVar[str] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(self, groups: Groups, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with optional momentum.

    Limits:
        ``momentum=0``: ``w <- w - lr * g``.
    """

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, groups: Groups, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum)


REGISTRY: dict[str, type[OptimizerSettings]] = {settings.name: settings for settings in (AdamW, SGD)}


def optimizer_names() -> list[str]:
    """Names a recipe may use."""
    return sorted(REGISTRY)


def optimizer_settings(section: OptimizerSection) -> OptimizerSettings:
    """Check a recipe's optimizer without touching a model.

    Raises:
        ConfigError: unknown name or setting.
    """
    if section.name not in REGISTRY:
        raise ConfigError(
            f"unknown optimizer '{section.name}'{nearest(section.name, REGISTRY)}; "
            f"known: {', '.join(optimizer_names())}"
        )
    return build_checked(REGISTRY[section.name], section.settings, "optimizer")


def build_optimizer(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer a recipe asks for.

    Weight decay touches matrices only, never norms, biases or scales; weights shorter than float32 get master copies.
    """
    settings = optimizer_settings(section)
    groups = _decay_groups(model.parameters(), settings.weight_decay)
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return settings.build(groups, section.lr)
    return MasterWeights(groups, lambda copies: settings.build(copies, section.lr))


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Start the optimizer's running averages afresh, weights untouched (what Kimi k1.5 does every iteration)."""
    (optimizer.inner if isinstance(optimizer, MasterWeights) else optimizer).state.clear()


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> Groups:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups: Groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

r"""Parts of an update that optimizers share: decoupled weight decay, momentum, and a bound on the divergence.

    w <- (1 - lr weight_decay) w          decay_
    b <- momentum b + d,  w <- w - lr b   momentum_buffer
    KL(step) ~ lr^2 d'g / 2 <= max_kl     bounded_divergence

Left out: the direction ``d`` (each optimizer's).
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from heliostat.optim.distributed.sharded_tensors import upcast


class NotFinite(ArithmeticError):
    """A number that a step needs is NaN or infinite, although the gradient is finite."""


def decay_(weight: Tensor, group: dict[str, Any]) -> None:
    """Apply a group's decoupled weight decay to a weight in place: ``w <- (1 - lr weight_decay) w``.

    References:
        Loshchilov and Hutter, arXiv 1711.05101 (2019).
    """
    if group["weight_decay"]:
        weight.mul_(1 - float(group["lr"]) * group["weight_decay"])


def momentum_buffer(state: dict[str, Any], like: Tensor) -> Tensor:
    """Return the momentum ``b`` in a state; at first zeros as ``like``, in float32 or wider."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(upcast(like))
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def bounded_divergence(max_kl: float | None, lr: float, decrement: Callable[[], float]) -> tuple[float, float]:
    """Bound the divergence of a step ``lr d``, to second order ``lr^2 d'g / 2`` in the metric that made ``d`` of ``g``.

    Args:
        max_kl: the bound in nats; ``None`` bounds nothing.
        lr: the largest learning rate of the groups.
        decrement: computes ``d'g`` over all weights; called only where there is a bound.

    Returns:
        The divergence of the shortened step, NaN without a bound, and the factor that shortens it.

    Raises:
        NotFinite: the divergence is NaN or infinite.
    """
    if max_kl is None:
        return float("nan"), 1.0
    kl = 0.5 * lr**2 * decrement()
    if not isfinite(kl):
        raise NotFinite("the divergence of the step")
    # The divergence is quadratic in the step, so a factor's square divides it.
    scale = min(1.0, (max_kl / kl) ** 0.5) if kl > 0 else 1.0
    return kl * scale**2, scale

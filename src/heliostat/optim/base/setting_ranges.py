"""What a parameter group may hold: real floating-point weights, and settings in their ranges.

Left out: settings that are not of a group (each optimizer's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_NOT_OURS = ("maximize", "amsgrad", "nesterov", "capturable", "differentiable")
"""Switches of torch's own optimizers that would change a step; a group that turns one on is not just ignored."""


def _not_negative(value: float) -> bool:
    return value >= 0


def _share(value: float) -> bool:
    return 0 <= value < 1


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "adamw_lr", "weight_decay", "rho", "process_noise"), (_not_negative, "not be negative")),
    **dict.fromkeys(("damping",), (lambda value: value > 0, "be positive")),
    **dict.fromkeys(("momentum", "ema", "statistics_ema"), (_share, "be in [0, 1)")),
    **dict.fromkeys(("max_kl",), (lambda value: value is None or value > 0, "be positive or None")),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check those settings whose names have a range, wherever they are given.

    Raises:
        ValueError: one is out of range, or a tensor of more than one number.
    """
    for name, value in settings.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        is_in_range, words = _RANGES.get(name, (None, ""))
        if is_in_range is not None and not is_in_range(value):
            raise ValueError(f"{name} must {words}, got {value}")
        if name == "betas" and not all(_share(beta) for beta in value):
            raise ValueError(f"betas must be in [0, 1), got {value}")


def check_group(group: Mapping[str, Any], optimizer: str) -> None:
    """Check a group's settings and weights.

    Raises:
        ValueError: a setting out of range or of another optimizer, or a weight that is complex or not a float.
    """
    check_settings({name: value for name, value in group.items() if name != "params"})
    switched_on = [name for name in _NOT_OURS if group.get(name)]
    if switched_on:
        raise ValueError(f"{optimizer} has no setting '{switched_on[0]}'; take it out of the parameter group")
    for item in group["params"]:
        weight = item[1] if isinstance(item, tuple) else item
        if isinstance(weight, Tensor) and (way_out := _way_out(weight)):
            raise ValueError(f"{optimizer} does not step weights of type {weight.dtype}: {way_out}")


def _way_out(weight: Tensor) -> str | None:
    """What to do about a weight that no optimizer here can step; ``None``: it can."""
    if torch.is_complex(weight):
        return "optimize torch.view_as_real(weight), a real tensor, and make the complex one from it"
    if not weight.is_floating_point():
        return "leave it out"
    if weight.itemsize == 1 and weight.requires_grad:
        return "freeze it and train adapters, or convert it to bfloat16"
    return None

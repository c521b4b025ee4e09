"""Hyperparameters of optimizers: read from a dataclass and keywords, and checked by name.

Each optimizer has one frozen dataclass that lists its hyperparameters with their defaults. Its constructor takes an
instance of it, keywords of the same names, or both; a recipe's keys are the same fields.

Left out: checks that involve several settings at once (each optimizer's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from heliostat.config import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

_SWITCHES_OF_TORCH = ("maximize", "amsgrad", "nesterov", "capturable", "differentiable")
"""Settings of torch's own optimizers that would change a step; a group that turns one on is refused, not ignored."""


def _is_fraction(value: float) -> bool:
    return 0 <= value < 1


Range = tuple[Callable[[Any], bool], str]
_NOT_NEGATIVE: Range = (lambda value: value >= 0, "not be negative")
_POSITIVE: Range = (lambda value: value > 0, "be positive")
_FRACTION: Range = (_is_fraction, "be in [0, 1)")
_COUNT: Range = (lambda value: value >= 1, "be at least 1")

_RANGES: dict[str, Range] = {
    **dict.fromkeys(("lr", "adamw_lr", "weight_decay", "rho", "process_noise"), _NOT_NEGATIVE),
    **dict.fromkeys(("damping", "radius", "covariance", "noise"), _POSITIVE),
    **dict.fromkeys(("momentum", "ema", "statistics_ema"), _FRACTION),
    **dict.fromkeys(("num_scores", "rank", "statistics_every", "inverse_every", "precondition_every"), _COUNT),
    **dict.fromkeys(("betas", "adamw_betas"), (lambda betas: all(map(_is_fraction, betas)), "be in [0, 1)")),
    "noise_ema": (lambda value: 0 <= value <= 1, "be in [0, 1]"),
    "forgetting": (lambda value: 0 < value <= 1, "be in (0, 1]"),
    "max_kl": (lambda value: value is None or value > 0, "be positive or None"),
    "block_size": (lambda value: value is None or value >= 1, "be at least 1 or None"),
}
"""By name of a setting: whether a value is accepted, and the words of the refusal."""


def settings_from(cls: type[S], given: S | None, keywords: Mapping[str, Any]) -> S:
    """Merge an optimizer's settings and keywords into one instance of ``cls``, and check it.

    Args:
        given: settings, also of a subclass with further fields, which are left out; the defaults where ``None``.
        keywords: values of single fields, which replace those of ``given``.

    Raises:
        TypeError: ``given`` is no ``cls``, or a keyword is not a field of it.
        ValueError: a value is out of range, or none of the choices of its ``Literal``.
    """
    if given is not None and not isinstance(given, cls):
        raise TypeError(f"settings must be {cls.__name__}, got {given!r}; pass hyperparameters by name")
    names = [field.name for field in fields(cls)]
    for name in keywords:
        if name not in names:
            raise TypeError(f"{cls.__name__} has no field '{name}'{nearest(name, names)}")
    start = cls() if given is None else cls(**{name: getattr(given, name) for name in names})
    settings = replace(start, **keywords)
    values = {name: getattr(settings, name) for name in names}
    check_settings(values)
    for name, hint in get_type_hints(cls).items():
        if get_origin(hint) is Literal and values[name] not in get_args(hint):
            raise ValueError(f"{name} must be {_alternatives(get_args(hint))}, got '{values[name]}'")
    return settings


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


def check_group(group: Mapping[str, Any], optimizer: str) -> None:
    """Check a parameter group's settings and weights.

    Args:
        optimizer: name of the optimizer, for the error.

    Raises:
        ValueError: a setting out of range or of another optimizer, or a weight that is complex or not a float.
    """
    check_settings({name: value for name, value in group.items() if name != "params"})
    switched_on = [name for name in _SWITCHES_OF_TORCH if group.get(name)]
    if switched_on:
        raise ValueError(f"{optimizer} has no setting '{switched_on[0]}'; take it out of the parameter group")
    for item in group["params"]:
        weight = item[1] if isinstance(item, tuple) else item
        if isinstance(weight, Tensor) and (remedy := _remedy(weight)):
            raise ValueError(f"{optimizer} does not step weights of type {weight.dtype}: {remedy}")


def _remedy(weight: Tensor) -> str | None:
    """Say what to do about a weight that no optimizer here can step; ``None`` where it can be stepped."""
    if torch.is_complex(weight):
        return "optimize torch.view_as_real(weight), a real tensor, and make the complex one from it"
    if not weight.is_floating_point():
        return "leave it out"
    if weight.itemsize == 1 and weight.requires_grad:
        return "freeze it and train adapters, or convert it to bfloat16"
    return None


def _alternatives(choices: tuple[str, ...]) -> str:
    *first, last = (f"'{choice}'" for choice in choices)
    return f"{', '.join(first)} or {last}"

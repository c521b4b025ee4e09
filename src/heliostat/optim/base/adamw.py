"""AdamW as a rule for some of an optimizer's groups: for the weights its own rule does not cover.

A group says which rule moves it (``group["rule"]``), so that printing an optimizer shows it.

Left out: choosing which weights (each optimizer's).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from heliostat.optim.distributed.sharded_tensors import upcast

ADAMW = "adamw"


def adamw_group(
    named: list[tuple[str, Tensor]], lr: float, adamw_lr: float, weight_decay: float, betas: tuple[float, float]
) -> list[dict[str, Any]]:
    """Groups under AdamW: matrices with weight decay, vectors without; empty ones are left out.

    ``lr_scale`` records ``adamw_lr / lr``, so that a schedule of the main learning rate scales both.
    """
    common = {
        **{"rule": ADAMW, "lr": adamw_lr, "lr_scale": adamw_lr / lr if lr else 1.0},
        **{"betas": betas, "eps": 1e-8},
    }
    groups = [
        {"params": [pair for pair in named if pair[1].ndim >= 2], "weight_decay": weight_decay, **common},
        {"params": [pair for pair in named if pair[1].ndim < 2], "weight_decay": 0.0, **common},
    ]
    return [group for group in groups if group["params"]]


def adamw_begin(parameters: list[Tensor], state: dict[Tensor, dict[str, Any]]) -> None:
    """Zero moments of the parameters that have none."""
    for parameter in parameters:
        own = state[parameter]
        if "exp_avg" not in own:
            own["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            own["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            own["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


@torch.no_grad()
def adamw_step(group: dict[str, Any], weights: dict[Tensor, Tensor], state: dict[Tensor, dict[str, Any]]) -> None:
    """One AdamW step of the group's parameters, which have gradients, in torch's fused form where it can.

    Args:
        weights: by parameter, the tensor that is moved: itself, or its float32 copy.

    Limits:
        ``torch.optim.AdamW(fused=True)``, bit for bit.
    """
    adamw_begin(list(weights), state)
    for fused in (True, False):
        stepped = [parameter for parameter in weights if _is_dense(parameter) == fused]
        if not stepped:
            continue
        adamw(
            [weights[parameter] for parameter in stepped],
            [upcast(parameter.grad) for parameter in stepped if parameter.grad is not None],
            [state[parameter]["exp_avg"] for parameter in stepped],
            [state[parameter]["exp_avg_sq"] for parameter in stepped],
            [],
            [state[parameter]["step"] for parameter in stepped],
            fused=fused,
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _is_dense(parameter: Tensor) -> bool:
    """Whether weight and gradient lie in memory alike and without gaps: torch's fused kernel takes that for granted."""
    assert parameter.grad is not None
    return parameter.is_contiguous() and parameter.grad.is_contiguous()

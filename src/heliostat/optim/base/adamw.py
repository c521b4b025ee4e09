"""AdamW for the parameters of an optimizer that its own rule does not cover.

A group says which rule moves it (``group["rule"]``), so printing an optimizer shows it.

Left out: the choice of those parameters (each optimizer's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from heliostat.optim.base.optimizer import BaseOptimizer
from heliostat.optim.base.param_groups import ParamGroups, decay_groups
from heliostat.optim.base.snapshot import OptimizerState
from heliostat.optim.distributed.sharded_tensors import upcast

ADAMW = "adamw"
"""The ``rule`` of groups that AdamW steps."""


def adamw_settings(lr: float, adamw_lr: float, betas: tuple[float, float]) -> dict[str, Any]:
    """Return the settings of a group under AdamW.

    ``lr_scale`` records ``adamw_lr / lr``, so that a schedule of the main learning rate scales both.
    """
    lr_scale = float(adamw_lr / lr) if lr else 1.0
    return {"rule": ADAMW, "lr": adamw_lr, "lr_scale": lr_scale, "betas": betas, "eps": 1e-8}


def adamw_groups(
    named: list[tuple[str, Tensor]], lr: float, adamw_lr: float, weight_decay: float, betas: tuple[float, float]
) -> ParamGroups:
    """Put named parameters in groups under AdamW, of which only the matrices decay."""
    return decay_groups(named, weight_decay, **adamw_settings(lr, adamw_lr, betas))


class AdamWFallback(BaseOptimizer):
    """An optimizer that steps some of its parameters by AdamW."""

    def begin_adamw(self, parameters: Sequence[Tensor]) -> None:
        """Create AdamW's state of the parameters that have none."""
        for parameter in parameters:
            self.weight(parameter)
        _begin(parameters, self.state)

    def step_by_adamw(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Step parameters of one group, which have gradients, by AdamW.

        Limits:
            ``torch.optim.AdamW(fused=True)``, bit for bit.
        """
        weights = {parameter: self.weight(parameter) for parameter in parameters}
        _begin(parameters, self.state)
        _step(group, weights, self.state)


def _begin(parameters: Sequence[Tensor], state: OptimizerState) -> None:
    for parameter in parameters:
        own = state[parameter]
        if "exp_avg" not in own:
            own["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            own["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            own["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


@torch.no_grad()
def _step(group: dict[str, Any], weights: dict[Tensor, Tensor], state: OptimizerState) -> None:
    """Call torch's AdamW on the weights to move, by parameter: in its fused form where it can, without it elsewhere."""
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
    """Return whether weight and gradient are both contiguous, which torch's fused kernel takes for granted."""
    assert parameter.grad is not None
    return parameter.is_contiguous() and parameter.grad.is_contiguous()

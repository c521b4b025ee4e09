"""Optimizers of a model's linear layers: which weights are theirs, and a layer's weight and bias as one matrix.

Weights may be sharded over ranks (FSDP2): every rank then gathers each gradient, computes the whole move, and keeps its
part of it. What is known of a layer is whole on every rank.

Left out: the update of that matrix (``eva``, ``ring``); sharing layers out over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heliostat.curvature.recorder import Recorder, Statistic, covered_layers, has_trainable_bias
from heliostat.optim.adamw import ADAMW, adamw_group, adamw_step
from heliostat.optim.finite import FiniteStep
from heliostat.optim.reductions import cut, dot, whole, wide
from heliostat.optim.replicas import ALONE, Group

LAYERS = "layers"


class LayerOptimizer(FiniteStep):
    """Base of optimizers that treat each linear layer's matrix as one, and everything else by AdamW.

    Two kinds of groups: ``rule="layers"`` (matrices of ``covered_layers`` with their biases) and ``rule="adamw"``
    (embeddings, norms, tied heads, sides over ``max_size``); printing the optimizer shows them.

    Attributes:
        layers: the covered layers by name.
        recorder: its hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        statistic: Statistic,
        *,
        lr: float,
        max_size: int,
        momentum: float,
        weight_decay: float,
        max_kl: float | None,
        adamw_lr: float,
        adamw_betas: tuple[float, float],
        process_group: Group,
        skip_unscored: bool,
        **defaults: float,
    ) -> None:
        if lr < 0 or weight_decay < 0 or adamw_lr < 0:
            raise ValueError("lr, adamw_lr and weight_decay must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if max_kl is not None and not max_kl > 0:
            raise ValueError(f"max_kl must be positive or None, got {max_kl}")
        self.layers = covered_layers(model, max_size)
        self.recorder = Recorder(self.layers, statistic, skip_unscored)
        self.max_kl, self.process_group = max_kl, process_group
        own = {id(p) for layer in self.layers.values() for p in layer.parameters(recurse=False)}
        named: list[tuple[str, Tensor]] = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        mine = [pair for pair in named if id(pair[1]) in own]
        groups: list[dict[str, Any]] = [
            {"params": [pair for pair in mine if pair[1].ndim >= 2], "weight_decay": weight_decay},
            {"params": [pair for pair in mine if pair[1].ndim < 2], "weight_decay": 0.0},
        ]
        groups = [{**group, "rule": LAYERS} for group in groups if group["params"]]
        rest = [pair for pair in named if id(pair[1]) not in own]
        super().__init__(
            [*groups, *adamw_group(rest, lr, adamw_lr, weight_decay, adamw_betas)],
            {"lr": lr, "momentum": momentum, **defaults},
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and what was recorded of the passes that made them."""
        super().zero_grad(set_to_none)
        if self.recorder.is_recording:
            self.recorder.statistic.clear()

    def damping_of(self, weight: Tensor) -> float:
        """The damping of the group that a layer's weight is in."""
        groups = (group for group in self.param_groups if any(p is weight for p in group["params"]))
        return float(next(groups)["damping"])

    def _move_all(self, direction: Callable[[str, Tensor], Tensor]) -> None:
        """Every covered layer along ``direction(name, gradient)``, shortened to ``max_kl``; the rest by AdamW."""
        if self.process_group == ALONE and any(isinstance(layer.weight, DTensor) for layer in self.layers.values()):
            raise ValueError(
                f"{type(self).__name__}'s weights are sharded, and each rank has seen its own rows only: leave "
                "process_group out, or give it their group"
            )
        group_of = {p: group for group in self.param_groups for p in self.with_gradient(group)}
        active = {name: layer for name, layer in self.layers.items() if layer.weight in group_of}
        gradients = {name: joined(layer, _gradients(layer)) for name, layer in active.items()}
        moves = {name: direction(name, gradient) for name, gradient in gradients.items()}
        scale = 1.0
        if self.max_kl is not None:
            lr = max(group["lr"] for group in self.param_groups if group["rule"] == LAYERS)
            kl = 0.5 * lr**2 * dot(list(moves.values()), list(gradients.values()))
            scale = min(1.0, (self.max_kl / kl) ** 0.5) if kl > 0 else 1.0
        for name, layer in active.items():
            self._move(layer, moves[name], scale, group_of)
        for group in self.param_groups:
            if group["rule"] == ADAMW:
                adamw_step(group, self.with_gradient(group), self.state)

    def _move(self, layer: nn.Linear, move: Tensor, scale: float, group_of: dict[Tensor, dict[str, Any]]) -> None:
        momentum, state = group_of[layer.weight]["momentum"], self.state[layer.weight]
        if momentum:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(move)
            move = state["momentum_buffer"].mul_(momentum).add_(move, alpha=scale)
            scale = 1.0
        for parameter, part in ((parameter, cut(part, parameter)) for parameter, part in _parts(layer, move)):
            group = group_of.get(parameter)
            if group is None:
                continue
            target = wide(parameter)
            if group["weight_decay"]:
                target.mul_(1 - group["lr"] * group["weight_decay"])
            target.add_(part, alpha=-group["lr"] * scale)
            if target is not parameter:
                parameter.copy_(target)


def joined(layer: nn.Linear, parts: tuple[Tensor, Tensor | None]) -> Tensor:
    """Weight-shaped and bias-shaped parts as one whole matrix [out, in (+ 1)], in float32 or wider."""
    weight, bias = (part if part is None else wide(whole(part)) for part in parts)
    assert weight is not None
    return weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], 1)


def _gradients(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    assert layer.weight.grad is not None
    if not has_trainable_bias(layer):
        return layer.weight.grad, None
    return layer.weight.grad, torch.zeros_like(layer.bias) if layer.bias.grad is None else layer.bias.grad


def _parts(layer: nn.Linear, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not has_trainable_bias(layer):
        return [(layer.weight, matrix)]
    return [(layer.weight, matrix[:, :-1]), (layer.bias, matrix[:, -1])]

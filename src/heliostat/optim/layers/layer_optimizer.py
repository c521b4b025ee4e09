"""Optimizers of a model's linear layers: which weights are theirs, and a layer's weight and bias as one matrix.

Weights may be sharded over ranks (FSDP2): every rank then gathers each gradient, computes the whole move, and keeps its
part of it. What is known of a layer is whole on every rank, its momentum too.

Left out: the update of that matrix (``eva``, ``ring``); sharing layers out over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heliostat.curvature.recorder import Recorder, Statistic, covered_layers, num_columns, trainable_parts
from heliostat.optim.base.adamw import ADAMW, adamw_begin, adamw_group, adamw_step
from heliostat.optim.base.optimizer import BaseOptimizer, NotFinite
from heliostat.optim.base.setting_ranges import check_settings
from heliostat.optim.distributed.replicas import ALONE, Group
from heliostat.optim.distributed.sharded_tensors import distribute, dot, full_tensor, upcast
from heliostat.optim.precision.master_copies import MASTER

LAYERS = "layers"


class LayerOptimizer(BaseOptimizer):
    """Base of optimizers that treat each linear layer's matrix as one, and everything else by AdamW.

    Two kinds of groups: ``rule="layers"`` (matrices of ``covered_layers`` with their biases) and ``rule="adamw"``
    (embeddings, norms, tied heads, sides over ``max_size``, and parameters added later); printing the optimizer shows
    them. Frozen parameters are in the groups as well, and are stepped once they are unfrozen. A layer's matrix has the
    columns of what is trainable in it; where that changes, what was known of the layer is forgotten.

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
        check_settings({"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "max_kl": max_kl})
        check_settings({"adamw_lr": adamw_lr, "betas": adamw_betas, **defaults})
        self.layers = covered_layers(model, max_size, with_frozen=True)
        self.max_kl, self.process_group = max_kl, process_group
        self._rest = {"lr": adamw_lr, "lr_scale": float(adamw_lr / lr) if lr else 1.0, "betas": adamw_betas}
        own = {id(p) for layer in self.layers.values() for p in layer.parameters(recurse=False)}
        named: list[tuple[str, Tensor]] = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad or p.is_floating_point()
        ]
        mine = [pair for pair in named if id(pair[1]) in own]
        groups: list[dict[str, Any]] = [
            {"params": [pair for pair in mine if pair[1].ndim >= 2], "weight_decay": weight_decay},
            {"params": [pair for pair in mine if pair[1].ndim < 2], "weight_decay": 0.0},
        ]
        groups = [{**group, "rule": LAYERS} for group in groups if group["params"]]
        rest = [pair for pair in named if id(pair[1]) not in own]
        super().__init__(
            [*groups, *adamw_group(rest, lr, adamw_lr, weight_decay, adamw_betas)],
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **defaults},
        )
        self.recorder = Recorder(self.layers, statistic, skip_unscored)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters by AdamW, at ``adamw_lr`` where the group gives no learning rate.

        Raises:
            ValueError: a group of layers; those are found in the model when the optimizer is made.
        """
        if isinstance(param_group, dict) and "rule" not in param_group:
            param_group.update({"rule": ADAMW, "eps": 1e-8, **self._rest, **param_group})
        if isinstance(param_group, dict) and hasattr(self, "recorder") and param_group["rule"] != ADAMW:
            raise ValueError(f"{type(self).__name__} finds its layers when it is made: make another over the model")
        super().add_param_group(param_group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return True  # to refuse it: what was recorded is of the scaled loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and what was recorded of passes since the last step."""
        super().zero_grad(set_to_none)
        self.recorder.statistic.clear()

    def damping_of(self, weight: Tensor) -> float:
        """The damping of the group that a layer's weight is in."""
        groups = (group for group in self.param_groups if any(p is weight for p in group["params"]))
        return float(next(groups)["damping"])

    def refuse_unseen(self, seen: Collection[str]) -> None:
        """Raise where a layer has a gradient but no pass through it was recorded.

        Raises:
            RuntimeError: its hooks were not called.
        """
        for name, layer in self.layers.items():
            parts = () if name in seen else trainable_parts(layer)
            if any(p.grad is not None and bool(full_tensor((p.grad != 0).any())) for p in parts):
                raise RuntimeError(
                    f"{type(self).__name__} saw no pass through layer '{name}', which has a gradient: make the "
                    "optimizer before the model is compiled or first run compiled, call the layer itself, and call "
                    "backward after zero_grad()"
                )

    def refuse_replaced(self) -> None:
        """Raise where a layer holds other parameters than when the optimizer was made.

        Raises:
            RuntimeError: its gradients would be read, and nothing of it moved.
        """
        known = set(self.parameters())
        for name, layer in self.layers.items():
            if any(part not in known for part in trainable_parts(layer)):
                raise RuntimeError(
                    f"{type(self).__name__}: layer '{name}' has other parameters than when the optimizer was made: "
                    "write into the old ones (load_state_dict without assign=True), or make another over the model"
                )

    def state_of(self, layer: nn.Linear, num_columns: int, like: Tensor) -> dict[str, Any]:
        """What is known of a layer; begun afresh where its matrix has other columns than before."""
        state: dict[str, Any] = self.state[layer.weight]
        if state.get("num_columns") != num_columns:
            for name in [name for name in state if name != MASTER]:
                del state[name]
            state["num_columns"] = num_columns
            self._begin(state, like.new_zeros(layer.out_features, num_columns))
        return state

    def _begin(self, state: dict[str, Any], matrix: Tensor) -> None:
        """Put everything in a layer's state that steps will use, knowing nothing; ``matrix`` is zero, of its size."""
        raise NotImplementedError

    def _begin_all(self) -> None:
        """State for every trainable parameter, before any step."""
        for layer in self.layers.values():
            if trainable_parts(layer):
                width = num_columns(layer)
                like = torch.zeros((), dtype=upcast(layer.weight).dtype, device=layer.weight.device)
                state = self.state_of(layer, width, like)
                if any(group["momentum"] for group in self.param_groups if group["rule"] == LAYERS):
                    _momentum_of(state, like.new_zeros(layer.out_features, width))
            for part in trainable_parts(layer):
                self.state[part].setdefault("steps", 0)
                self.weight(part)
        for group in self.param_groups:
            if group["rule"] == ADAMW:
                adamw_begin(self.with_gradient(group), self.state)
                for parameter in self.with_gradient(group):
                    self.weight(parameter)

    def _move_all(self, direction: Callable[[str, Tensor], Tensor]) -> None:
        """Every covered layer along ``direction(name, gradient)``, shortened to ``max_kl``; the rest by AdamW."""
        if self.process_group == ALONE and any(isinstance(layer.weight, DTensor) for layer in self.layers.values()):
            raise ValueError(
                f"{type(self).__name__}'s weights are sharded, and each rank has seen its own rows only: leave "
                "process_group out, or give it their group"
            )
        group_of = {p: group for group in self.param_groups for p in self.with_gradient(group)}
        active = {
            name: layer
            for name, layer in self.layers.items()
            if any(part.grad is not None for part in trainable_parts(layer))
        }
        gradients = {name: joined(layer) for name, layer in active.items()}
        moves = {name: direction(name, gradient) for name, gradient in gradients.items()}
        scale = 1.0
        if self.max_kl is not None:
            lr = max((float(group["lr"]) for group in self.param_groups if group["rule"] == LAYERS), default=0.0)
            kl = 0.5 * lr**2 * dot(list(moves.values()), list(gradients.values()))
            if not isfinite(kl):
                raise NotFinite("the divergence of the step")
            scale = min(1.0, (self.max_kl / kl) ** 0.5) if kl > 0 else 1.0
        for name, layer in active.items():
            self._move(layer, moves[name], scale, group_of)
        for group in self.param_groups:
            if group["rule"] == ADAMW:
                adamw_step(group, {p: self.weight(p) for p in self.with_gradient(group)}, self.state)

    def _move(self, layer: nn.Linear, move: Tensor, scale: float, group_of: dict[Tensor, dict[str, Any]]) -> None:
        state = self.state[layer.weight]
        parts = [(part, columns) for part, columns in _columns(layer, move) if part in group_of]
        momentum = group_of[parts[0][0]]["momentum"]
        if momentum:
            move = _momentum_of(state, move).mul_(momentum).add_(move, alpha=scale)
            parts = [(part, columns) for part, columns in _columns(layer, move) if part in group_of]
            scale = 1.0
        for parameter, columns in parts:
            group, own = group_of[parameter], self.state[parameter]
            own["steps"] = own.get("steps", 0) + 1
            target = self.weight(parameter)
            if group["weight_decay"]:
                target.mul_(1 - group["lr"] * group["weight_decay"])
            target.add_(distribute(columns, parameter), alpha=-float(group["lr"]) * scale)


def _momentum_of(state: dict[str, Any], like: Tensor) -> Tensor:
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(like)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def joined(layer: nn.Linear) -> Tensor:
    """The gradient of a layer's trainable parts as one whole matrix, in float32 or wider: [out, in + 1] of both."""
    columns = []
    for part in trainable_parts(layer):
        gradient = upcast(full_tensor(torch.zeros_like(part) if part.grad is None else part.grad))
        columns.append(gradient if gradient.ndim > 1 else gradient.unsqueeze(1))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _columns(layer: nn.Linear, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each trainable part with its own columns of the layer's matrix."""
    found: list[tuple[Tensor, Tensor]] = []
    start = 0
    for part in trainable_parts(layer):
        width = part.shape[1] if part.ndim > 1 else 1
        columns = matrix[:, start : start + width]
        found.append((part, columns if part.ndim > 1 else columns[:, 0]))
        start += width
    return found

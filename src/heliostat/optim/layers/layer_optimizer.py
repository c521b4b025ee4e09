"""The base class of optimizers of linear layers: a layer's weight and bias are one matrix.

Weights may be sharded over ranks (FSDP2). Every rank then gathers each gradient, computes the whole update, and applies
its part of it. A layer's state, momentum included, is whole on every rank.

Left out: the direction of that matrix (``eva``, ``ring``); distributing layers over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heliostat.curvature.recorder import Recorder, Statistic, covered_layers, num_columns, trainable_parts
from heliostat.optim.base.adamw import ADAMW, AdamWFallback, adamw_groups, adamw_settings
from heliostat.optim.base.param_groups import decay_groups
from heliostat.optim.base.settings import check_settings
from heliostat.optim.base.update_parts import bounded_divergence, decay_, momentum_buffer
from heliostat.optim.distributed.replicas import ALONE, ProcessGroup
from heliostat.optim.distributed.sharded_tensors import distribute, dot, full_tensor, upcast
from heliostat.optim.precision.master_copies import MASTER

LAYERS = "layers"
"""The ``rule`` of groups that hold linear layers."""


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Hyperparameters of every optimizer of linear layers.

    Attributes:
        damping: added to the curvature; the effective learning rate is about lr / damping where the curvature is small.
        momentum: share of the last update that is kept, as in SGD, applied after preconditioning.
        weight_decay: decoupled, as in AdamW; of matrices only.
        max_kl: shortens the step so that ``lr^2 d'g / 2`` over all layers is at most this, in nats; empty: never.
        max_size: layers with a longer side go to AdamW.
        adamw_lr: peak learning rate of the weights that go to AdamW.
        adamw_betas: betas of AdamW.
    """

    damping: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_kl: float | None = None
    max_size: int = 4096
    adamw_lr: float = 1e-3
    adamw_betas: tuple[float, float] = (0.9, 0.999)


class LayerOptimizer(AdamWFallback):
    """Base of optimizers that treat each linear layer's matrix as one, and step everything else by AdamW.

    There are two kinds of groups: ``rule="layers"`` (matrices of ``covered_layers`` with their biases) and
    ``rule="adamw"`` (embeddings, norms, tied heads, sides over ``max_size``, and parameters added later). Printing the
    optimizer shows them. Frozen parameters are in the groups as well, and are stepped once they are unfrozen. A layer's
    matrix has the columns of its trainable parameters; where that changes, the layer's state starts afresh.

    Args:
        statistic: receives the rows that the layers' hooks record.
        process_group: sums or averages statistics over its ranks; ``None``: the default group, ``"alone"``: no others.
        skip_zero_gradients: leave rows with a zero output gradient (padding) out of the statistic.

    Attributes:
        layers: the covered layers by name.
        recorder: the hooks on them; they stay on the model until ``recorder.close()``.
    """

    settings: LayerSettings

    def __init__(
        self,
        model: nn.Module,
        statistic: Statistic,
        lr: float,
        settings: LayerSettings,
        process_group: ProcessGroup,
        skip_zero_gradients: bool,
    ) -> None:
        check_settings({"lr": lr})
        self.settings, self.process_group = settings, process_group
        self.layers = covered_layers(model, settings.max_size, with_frozen=True)
        self._adamw_settings = adamw_settings(lr, settings.adamw_lr, settings.adamw_betas)
        covered = {id(p) for layer in self.layers.values() for p in layer.parameters(recurse=False)}
        named: list[tuple[str, Tensor]] = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad or p.is_floating_point()
        ]
        mine = [pair for pair in named if id(pair[1]) in covered]
        rest = [pair for pair in named if id(pair[1]) not in covered]
        decay = settings.weight_decay
        groups = [
            *decay_groups(mine, decay, rule=LAYERS),
            *adamw_groups(rest, lr, settings.adamw_lr, decay, settings.adamw_betas),
        ]
        momentum, damping = settings.momentum, settings.damping
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": decay, "damping": damping})
        self.recorder = Recorder(self.layers, statistic, skip_zero_gradients)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters by AdamW, at ``adamw_lr`` where the group gives no learning rate.

        Raises:
            ValueError: a group of layers; those are found in the model when the optimizer is constructed.
        """
        if isinstance(param_group, dict) and "rule" not in param_group:
            param_group.update({**self._adamw_settings, **param_group})
        if isinstance(param_group, dict) and hasattr(self, "recorder") and param_group["rule"] != ADAMW:
            raise ValueError(f"{type(self).__name__} finds its layers when it is made: make another over the model")
        super().add_param_group(param_group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return True  # so that `step` is called and refuses: the recorded rows belong to the scaled loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the rows recorded since the last step."""
        super().zero_grad(set_to_none)
        self.recorder.statistic.clear()

    # -- passes that were not seen -----------------------------------------------------------------------------------

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
        """Raise where a layer holds other parameters than when the optimizer was constructed.

        Raises:
            RuntimeError: it does; its gradients would be read, and its new weights never moved.
        """
        known = set(self.parameters())
        for name, layer in self.layers.items():
            if any(part not in known for part in trainable_parts(layer)):
                raise RuntimeError(
                    f"{type(self).__name__}: layer '{name}' has other parameters than when the optimizer was made: "
                    "write into the old ones (load_state_dict without assign=True), or make another over the model"
                )

    # -- state -------------------------------------------------------------------------------------------------------

    def state_of(self, layer: nn.Linear, num_columns: int, like: Tensor) -> dict[str, Any]:
        """Return a layer's state; it starts afresh where its matrix has another number of columns than before."""
        state: dict[str, Any] = self.state[layer.weight]
        if state.get("num_columns") != num_columns:
            for name in [name for name in state if name != MASTER]:
                del state[name]
            state["num_columns"] = num_columns
            self._begin(state, like.new_zeros(layer.out_features, num_columns))
        return state

    def _begin(self, state: dict[str, Any], matrix: Tensor) -> None:
        """Create every entry of a layer's state that steps will use; ``matrix`` is zero and of the layer's size."""
        raise NotImplementedError

    def _begin_all(self) -> None:
        """Create the state of every trainable parameter, before any step."""
        for layer in self.layers.values():
            if trainable_parts(layer):
                width = num_columns(layer)
                like = torch.zeros((), dtype=upcast(layer.weight).dtype, device=layer.weight.device)
                state = self.state_of(layer, width, like)
                if any(group["momentum"] for group in self.param_groups if group["rule"] == LAYERS):
                    momentum_buffer(state, like.new_zeros(layer.out_features, width))
            for part in trainable_parts(layer):
                self.state[part].setdefault("steps", 0)
                self.weight(part)
        for group in self.param_groups:
            if group["rule"] == ADAMW:
                self.begin_adamw(self.with_gradient(group))

    # -- the update --------------------------------------------------------------------------------------------------

    def damping_of(self, weight: Tensor) -> float:
        """Return the damping of the group that a layer's weight is in."""
        groups = (group for group in self.param_groups if any(p is weight for p in group["params"]))
        return float(next(groups)["damping"])

    def _move_all(self, direction: Callable[[str, Tensor], Tensor]) -> None:
        """Step every covered layer along ``direction(name, gradient)``, shortened to ``max_kl``, and the rest by AdamW.

        Raises:
            NotFinite: the step's divergence is not finite.
            ValueError: weights are sharded, and ``process_group`` says that this rank is alone.
        """
        if self.process_group == ALONE and any(isinstance(layer.weight, DTensor) for layer in self.layers.values()):
            raise ValueError(
                f"{type(self).__name__}'s weights are sharded, and each rank has seen its own rows only: leave "
                "process_group out, or give it their group"
            )
        group_of = self.groups_with_gradient()
        active = {
            name: layer
            for name, layer in self.layers.items()
            if any(part.grad is not None for part in trainable_parts(layer))
        }
        gradients = {name: joined_gradient(layer) for name, layer in active.items()}
        moves = {name: direction(name, gradient) for name, gradient in gradients.items()}
        # The bound is one for all layers, so every direction is known before any weight moves.
        lr = max((float(group["lr"]) for group in self.param_groups if group["rule"] == LAYERS), default=0.0)
        _, scale = bounded_divergence(
            self.settings.max_kl, lr, lambda: dot(list(moves.values()), list(gradients.values()))
        )
        for name, layer in active.items():
            self._move(layer, moves[name], scale, group_of)
        for group in self.param_groups:
            if group["rule"] == ADAMW:
                self.step_by_adamw(group, self.with_gradient(group))

    def _move(self, layer: nn.Linear, move: Tensor, scale: float, group_of: dict[Tensor, dict[str, Any]]) -> None:
        """Apply ``scale * move`` to a layer's parts that have a gradient, through momentum and weight decay."""
        parts = [(part, columns) for part, columns in _columns(layer, move) if part in group_of]
        momentum = group_of[parts[0][0]]["momentum"]
        if momentum:
            buffer = momentum_buffer(self.state[layer.weight], move).mul_(momentum).add_(move, alpha=scale)
            parts = [(part, columns) for part, columns in _columns(layer, buffer) if part in group_of]
            scale = 1.0
        for parameter, columns in parts:
            group, own = group_of[parameter], self.state[parameter]
            own["steps"] = own.get("steps", 0) + 1
            target = self.weight(parameter)
            decay_(target, group)
            target.add_(distribute(columns, parameter), alpha=-float(group["lr"]) * scale)


def joined_gradient(layer: nn.Linear) -> Tensor:
    """Return the gradient of a layer's trainable parts as one matrix in float32 or wider: [out, in + 1] of both."""
    columns = []
    for part in trainable_parts(layer):
        gradient = upcast(full_tensor(torch.zeros_like(part) if part.grad is None else part.grad))
        columns.append(gradient if gradient.ndim > 1 else gradient.unsqueeze(1))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _columns(layer: nn.Linear, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split the layer's matrix into the columns of each trainable part."""
    found: list[tuple[Tensor, Tensor]] = []
    start = 0
    for part in trainable_parts(layer):
        width = part.shape[1] if part.ndim > 1 else 1
        columns = matrix[:, start : start + width]
        found.append((part, columns if part.ndim > 1 else columns[:, 0]))
        start += width
    return found

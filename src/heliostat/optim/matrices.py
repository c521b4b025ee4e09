"""What optimizers of whole matrices share: which weights are theirs, blocks, sharded weights, and AdamW for the rest.

A matrix is gathered where it is sharded, cut into blocks where its sides are long, handed to the rule as
[block, p, q], and what comes back is put together and cut over ranks again.

Left out: any rule for a matrix (``kronecker_sum``, ``kronecker_product``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.optim.adamw import ADAMW, adamw_group, adamw_step
from heliostat.optim.finite import FiniteStep, evaluated
from heliostat.optim.reductions import all_finite, cut, whole, wide
from heliostat.optim.replicas import Group

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class MatrixStep(FiniteStep):
    """One rule for matrices whose sides are at most ``max_size``, AdamW for everything else; see a subclass.

    Attributes:
        rule: what groups of matrices are called.
    """

    rule: ClassVar[str]

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        statistics_ema: float = 0.95,
        precondition_every: int = 10,
        weight_decay: float = 0.0,
        max_size: int = 2048,
        block_size: int | None = None,
        process_group: Group = None,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        if not all(0 <= beta < 1 for beta in (*betas, statistics_ema)):
            raise ValueError("betas and statistics_ema must be in [0, 1)")
        if precondition_every < 1:
            raise ValueError(f"precondition_every must be at least 1, got {precondition_every}")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1 or None, got {block_size}")
        self.statistics_ema, self.precondition_every, self.block_size = statistics_ema, precondition_every, block_size
        self.process_group = process_group
        given: list[Any] = list(params)
        trainable = [item for item in given if _tensor(item).requires_grad]
        mine = [item for item in trainable if _tensor(item).ndim == 2 and max(_tensor(item).shape) <= max_size]
        ids = {id(_tensor(item)) for item in mine}
        groups: list[dict[str, Any]] = (
            [{"params": mine, "rule": self.rule, "weight_decay": weight_decay}] if mine else []
        )
        rest = [item for item in trainable if id(_tensor(item)) not in ids]
        named = [item if isinstance(item, tuple) else ("", item) for item in rest]
        others = adamw_group(named, lr, lr, weight_decay, betas)
        if rest and not isinstance(rest[0], tuple):
            others = [{**group, "params": [pair[1] for pair in group["params"]]} for group in others]
        super().__init__([*groups, *others], {"lr": lr, "betas": betas, "eps": 1e-8})

    @abstractmethod
    def preconditioned(
        self, gradient: Float[Tensor, "block p q"], state: dict[str, Any], group: dict[str, Any]
    ) -> Float[Tensor, "block p q"]:
        """A matrix's step before the learning rate; ``state["steps"]`` counts this one, the rest is the rule's own."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients in place."""
        loss = evaluated(closure)
        self.agreed_ranks()
        groups = [(group, self.with_gradient(group)) for group in self.param_groups]
        if not all_finite([p.grad for _, parameters in groups for p in parameters if p.grad is not None]):
            self.skip("the gradient")
            return loss
        for group, parameters in groups:
            if group["rule"] == ADAMW:
                adamw_step(group, parameters, self.state)
                continue
            for parameter in parameters:
                move = self._move(parameter, group)
                target = wide(parameter)
                if group["weight_decay"]:
                    target.mul_(1 - group["lr"] * group["weight_decay"])
                target.add_(move, alpha=-group["lr"])
                if target is not parameter:
                    parameter.copy_(target)
        self.num_steps += 1
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """``preconditioned`` for one parameter, cut as it is. Sharded parameters are gathered for it."""
        assert parameter.grad is not None
        gradient = wide(whole(parameter.grad))
        num_parts = tuple(_num_parts(side, self.block_size) for side in gradient.shape)
        state = self.state[parameter]
        state["steps"] = state.get("steps", 0) + 1
        move = self.preconditioned(_blocks_of(gradient, *num_parts), state, group)
        return cut(_joined(move, *num_parts), parameter)


def _num_parts(side: int, block_size: int | None) -> int:
    if block_size is None or side <= block_size:
        return 1
    fitting = (n for n in range(-(-side // block_size), 2 * side // block_size + 1) if side % n == 0)
    return next(fitting, 1)


def _blocks_of(matrix: Tensor, num_down: int, num_across: int) -> Tensor:
    """Equal blocks of a matrix [p, q], row by row, as [block, p / num_down, q / num_across]."""
    if num_down == num_across == 1:
        return matrix.unsqueeze(0)
    p, q = matrix.shape
    return matrix.reshape(num_down, p // num_down, num_across, q // num_across).transpose(1, 2).flatten(0, 1)


def _joined(blocks: Tensor, num_down: int, num_across: int) -> Tensor:
    """The matrix of these blocks (``_blocks_of``)."""
    num, p, q = blocks.shape
    if num == 1:
        return blocks[0]
    return blocks.reshape(num_down, num_across, p, q).transpose(1, 2).reshape(num_down * p, num_across * q)


def _tensor(item: Any) -> Tensor:
    tensor: Tensor = item[1] if isinstance(item, tuple) else item
    return tensor

"""What optimizers of whole matrices share: which weights are theirs, blocks, sharded weights, and AdamW for the rest.

A matrix is gathered where it is sharded, cut into blocks where its sides are long, handed to the rule as
[block, p, q], and what comes back is put together and cut over ranks again.

Left out: any rule for a matrix (``kronecker_sum``, ``kronecker_product``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from heliostat.optim.base.adamw import ADAMW, adamw_begin, adamw_group, adamw_step
from heliostat.optim.base.optimizer import BaseOptimizer, in_own_precision
from heliostat.optim.base.setting_ranges import check_settings
from heliostat.optim.distributed.replicas import Group
from heliostat.optim.distributed.sharded_tensors import all_finite, distribute, full_tensor, upcast

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class MatrixStep(BaseOptimizer):
    """One rule for matrices whose sides are at most ``max_size``, AdamW for everything else; see a subclass.

    Parameters given in one list are put in groups: matrices of this rule, other matrices, and vectors, which do not
    decay. Groups that are given stay as they are, with settings and weight decay of their own; in a group of this
    rule AdamW steps what does not fit it, and a group with ``rule="adamw"`` is AdamW's.

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
        check_settings({"lr": lr, "betas": betas, "weight_decay": weight_decay, "statistics_ema": statistics_ema})
        if precondition_every < 1:
            raise ValueError(f"precondition_every must be at least 1, got {precondition_every}")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1 or None, got {block_size}")
        self.statistics_ema, self.precondition_every = statistics_ema, precondition_every
        self.max_size, self.block_size = max_size, block_size
        self.process_group = process_group
        groups: Any = params
        if not isinstance(params, Tensor):
            groups = list(params)
            if _is_one_list(groups):
                groups = self._in_groups(groups, lr, weight_decay, betas)
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay, "rule": self.rule}
        super().__init__(groups, defaults)

    def _in_groups(
        self, given: list[Any], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> list[dict[str, Any]]:
        mine = [item for item in given if self._fits(_tensor(item))]
        ids = {id(_tensor(item)) for item in mine}
        rest = [item for item in given if id(_tensor(item)) not in ids]
        named = [item if isinstance(item, tuple) else ("", item) for item in rest]
        others = adamw_group(named, lr, lr, weight_decay, betas)
        if rest and not isinstance(rest[0], tuple):
            others = [{**group, "params": [pair[1] for pair in group["params"]]} for group in others]
        return [{"params": mine, "weight_decay": weight_decay}, *others] if mine else others

    def _fits(self, parameter: Tensor) -> bool:
        return parameter.ndim == 2 and min(parameter.shape) > 0 and max(parameter.shape) <= self.max_size

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters, by this rule where it fits them; see ``BaseOptimizer.add_param_group``."""
        if isinstance(param_group, dict) and param_group.get("rule", self.rule) not in (self.rule, ADAMW):
            raise ValueError(f"a group's rule must be '{self.rule}' or '{ADAMW}', got '{param_group['rule']}'")
        super().add_param_group(param_group)

    @abstractmethod
    def preconditioned(
        self, gradient: Float[Tensor, "block p q"], state: dict[str, Any], group: dict[str, Any]
    ) -> Float[Tensor, "block p q"]:
        """A matrix's step before the learning rate; ``state["steps"]`` counts this one, the rest is the rule's own."""

    @abstractmethod
    def begin(self, blocks: Float[Tensor, "block p q"], state: dict[str, Any]) -> None:
        """Put everything in a matrix's state that steps will use, knowing nothing; ``blocks`` has its size."""

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients in place."""
        loss = self.run_closure(closure)
        self.checked_ranks()
        groups = [(group, self.with_gradient(group)) for group in self.param_groups]
        if self.would_move_nothing():
            self._step_groups(groups, begin_only=True)
        elif not all_finite([p.grad for _, parameters in groups for p in parameters if p.grad is not None]):
            self.skip("the gradient")
        else:
            self.commit(lambda: self._step_groups(groups))
        return loss

    def _step_groups(self, groups: list[tuple[dict[str, Any], list[Tensor]]], begin_only: bool = False) -> None:
        for group, parameters in groups:
            mine = [p for p in parameters if group["rule"] == self.rule and self._fits(p)]
            ids = set(map(id, mine))
            others = [p for p in parameters if id(p) not in ids]
            weights = {parameter: self.weight(parameter) for parameter in (*others, *mine)}
            if begin_only:
                adamw_begin(others, self.state)
            else:
                adamw_step(group, {parameter: weights[parameter] for parameter in others}, self.state)
            for parameter in mine:
                blocks, num_parts = self._blocks_of_gradient(parameter)
                if not begin_only:
                    self._move(parameter, group, blocks, num_parts)

    def _blocks_of_gradient(self, parameter: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A parameter's gradient in blocks, and how many there are down and across; its state is begun."""
        assert parameter.grad is not None
        gradient = upcast(full_tensor(parameter.grad))
        down, across = (_num_parts(side, self.block_size) for side in gradient.shape)
        blocks, state = _blocks_of(gradient, down, across), self.state[parameter]
        if "steps" not in state:
            state["steps"] = 0
            self.begin(blocks, state)
        return blocks, (down, across)

    def _move(self, parameter: Tensor, group: dict[str, Any], blocks: Tensor, num_parts: tuple[int, int]) -> None:
        """One step of one parameter, cut over ranks as it is."""
        state = self.state[parameter]
        state["steps"] += 1
        move = distribute(_joined(self.preconditioned(blocks, state, group), *num_parts), parameter)
        target = self.weight(parameter)
        if group["weight_decay"]:
            target.mul_(1 - group["lr"] * group["weight_decay"])
        target.add_(move, alpha=-float(group["lr"]))


def _is_one_list(given: list[Any]) -> bool:
    """Whether it is a list of parameters that can be looked at; what is wrong with another, torch says."""
    named = [isinstance(item, tuple) for item in given]
    return all(isinstance(_tensor(item), Tensor) for item in given) and all(named) == any(named)


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
    tensor: Tensor = item[1] if isinstance(item, tuple) and len(item) == 2 else item
    return tensor

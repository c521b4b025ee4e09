"""The base class of optimizers of whole matrices: blocks, sharded weights, and AdamW for the rest.

A matrix is gathered where it is sharded, split into blocks where its sides are long, and passed to the rule as
[block, p, q]. The rule's step is put together again and distributed over ranks.

Left out: any rule for a matrix (``kronecker_sum``, ``kronecker_product``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from heliostat.optim.base.adamw import ADAMW, AdamWFallback, adamw_groups
from heliostat.optim.base.own_precision import in_own_precision
from heliostat.optim.base.settings import check_settings
from heliostat.optim.base.update_parts import decay_
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.distributed.sharded_tensors import all_finite, distribute, full_tensor, upcast

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class MatrixSettings:
    """Hyperparameters of every optimizer of whole matrices.

    Attributes:
        betas: of the running mean of gradients, and of the second moment that AdamW uses.
        statistics_ema: weight of the old second moments of rows and columns.
        precondition_every: steps between eigenbases.
        weight_decay: decoupled, for matrices; where groups are given, of each group.
        max_size: matrices with a longer side go to AdamW.
        block_size: cut longer sides into the fewest equal blocks of at most this and at least half of it, each with
            eigenbases of its own; a side that has no such blocks stays whole; empty: nothing is cut.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    statistics_ema: float = 0.95
    precondition_every: int = 10
    weight_decay: float = 0.0
    max_size: int = 2048
    block_size: int | None = None


class MatrixOptimizer(AdamWFallback):
    """Base of optimizers with one rule for matrices with sides up to ``max_size``, and AdamW for everything else.

    Parameters given in one list are put in groups: matrices of this rule, other matrices, and vectors, which do not
    decay. Groups that are given stay as they are, with settings and weight decay of their own. In a group of this rule
    AdamW steps the parameters that do not fit it, and a group with ``rule="adamw"`` is AdamW's.

    Attributes:
        rule: the ``rule`` of groups of matrices.
    """

    rule: ClassVar[str]
    settings: MatrixSettings

    def __init__(self, params: Params, lr: float, settings: MatrixSettings, process_group: ProcessGroup) -> None:
        check_settings({"lr": lr})
        self.settings, self.process_group = settings, process_group
        groups: Any = list(params.named_parameters()) if isinstance(params, nn.Module) else params
        if not isinstance(groups, Tensor):
            groups = list(groups)
            if _is_one_list(groups):
                groups = self._in_groups(groups, lr)
        betas, decay = settings.betas, settings.weight_decay
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": decay, "rule": self.rule})

    def _in_groups(self, given: list[Any], lr: float) -> list[dict[str, Any]]:
        """Split one list of parameters into groups of this rule and of AdamW; names are kept where there are any."""
        mine = [item for item in given if self._fits(_tensor(item))]
        ids = {id(_tensor(item)) for item in mine}
        rest = [item for item in given if id(_tensor(item)) not in ids]
        named = [item if isinstance(item, tuple) else ("", item) for item in rest]
        decay = self.settings.weight_decay
        others = adamw_groups(named, lr, lr, decay, self.settings.betas)
        if rest and not isinstance(rest[0], tuple):
            others = [{**group, "params": [pair[1] for pair in group["params"]]} for group in others]
        return [{"params": mine, "weight_decay": decay}, *others] if mine else others

    def _fits(self, parameter: Tensor) -> bool:
        return parameter.ndim == 2 and min(parameter.shape) > 0 and max(parameter.shape) <= self.settings.max_size

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters, by this rule where it fits them; see ``BaseOptimizer.add_param_group``."""
        if isinstance(param_group, dict) and param_group.get("rule", self.rule) not in (self.rule, ADAMW):
            raise ValueError(f"a group's rule must be '{self.rule}' or '{ADAMW}', got '{param_group['rule']}'")
        super().add_param_group(param_group)

    @abstractmethod
    def preconditioned(
        self, gradient: Float[Tensor, "block p q"], state: dict[str, Any], group: dict[str, Any]
    ) -> Float[Tensor, "block p q"]:
        """Return a matrix's step before the learning rate; ``state["steps"]`` counts this one."""

    @abstractmethod
    def begin(self, blocks: Float[Tensor, "block p q"], state: dict[str, Any]) -> None:
        """Create every entry of a matrix's state that steps will use; ``blocks`` has the matrix's size."""

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the gradients in place."""
        loss = self.run_closure(closure)
        self.checked_ranks()
        gradients = self.gradients()
        if self.would_move_nothing():
            self._begin_all()
        elif not all_finite(list(gradients.values())):
            self.skip("the gradient")
        else:
            self.commit(self._move_all)
        return loss

    def _split(self) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
        """Yield every group with its parameters that have a gradient: those of this rule, and those of AdamW."""
        for group in self.param_groups:
            parameters = self.with_gradient(group)
            mine = [p for p in parameters if group["rule"] == self.rule and self._fits(p)]
            ids = set(map(id, mine))
            yield group, mine, [p for p in parameters if id(p) not in ids]

    def _begin_all(self) -> None:
        """Create the state of every parameter that has a gradient, before any step."""
        for _, mine, others in self._split():
            self.begin_adamw(others)
            for parameter in mine:
                self.weight(parameter)
                self._blocks_of_gradient(parameter)

    def _move_all(self) -> None:
        for group, mine, others in self._split():
            self.step_by_adamw(group, others)
            for parameter in mine:
                self._move(parameter, group)

    def _blocks_of_gradient(self, parameter: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return a parameter's gradient in blocks, and their numbers down and across; create the parameter's state."""
        assert parameter.grad is not None
        gradient = upcast(full_tensor(parameter.grad))
        down, across = (_num_parts(side, self.settings.block_size) for side in gradient.shape)
        blocks, state = _blocks_of(gradient, down, across), self.state[parameter]
        if "steps" not in state:
            state["steps"] = 0
            self.begin(blocks, state)
        return blocks, (down, across)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Step one parameter by this rule; of a sharded one, this rank's shard."""
        target = self.weight(parameter)
        blocks, num_parts = self._blocks_of_gradient(parameter)
        state = self.state[parameter]
        state["steps"] += 1
        move = distribute(_joined(self.preconditioned(blocks, state, group), *num_parts), parameter)
        decay_(target, group)
        target.add_(move, alpha=-float(group["lr"]))


def _is_one_list(given: list[Any]) -> bool:
    """Return whether ``given`` lists parameters, all with names or all without; torch refuses anything else itself."""
    named = [isinstance(item, tuple) for item in given]
    return all(isinstance(_tensor(item), Tensor) for item in given) and all(named) == any(named)


def _num_parts(side: int, block_size: int | None) -> int:
    """Return the least number of equal parts between half of ``block_size`` and ``block_size`` long; 1 if none fits."""
    if block_size is None or side <= block_size:
        return 1
    fitting = (n for n in range(-(-side // block_size), 2 * side // block_size + 1) if side % n == 0)
    return next(fitting, 1)


def _blocks_of(matrix: Tensor, num_down: int, num_across: int) -> Tensor:
    """Split a matrix [p, q] into equal blocks, row by row: [block, p / num_down, q / num_across]."""
    if num_down == num_across == 1:
        return matrix.unsqueeze(0)
    p, q = matrix.shape
    return matrix.reshape(num_down, p // num_down, num_across, q // num_across).transpose(1, 2).flatten(0, 1)


def _joined(blocks: Tensor, num_down: int, num_across: int) -> Tensor:
    """Put the blocks of ``_blocks_of`` together again."""
    num, p, q = blocks.shape
    if num == 1:
        return blocks[0]
    return blocks.reshape(num_down, num_across, p, q).transpose(1, 2).reshape(num_down * p, num_across * q)


def _tensor(item: Any) -> Tensor:
    tensor: Tensor = item[1] if isinstance(item, tuple) and len(item) == 2 else item
    return tensor

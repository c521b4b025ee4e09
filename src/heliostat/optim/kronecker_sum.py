"""Kronecker-sum preconditioning: Shampoo's statistics, with every entry's second moment from their log-det projection.

    E[G G'] = U diag(lambda) U',  E[G' G] = V diag(mu) V',   sum_j 1/(l_i + r_j) = lambda_i,  sum_i 1/(l_i + r_j) = mu_j

``1/(l_i + r_j)`` models the second moment of entry (i, j) of ``U' G V``; Adam's division by its root becomes a product
with ``(l_i + r_j)^(1/2)``. No second moment of all p x q entries is stored for it.

A step multiplies each p x q gradient by its bases and back and forms ``GG'`` and ``G'G``: about ``5 p q (p + q)``
operations, whatever the batch. Cutting long sides into blocks, as Shampoo's libraries do, makes it less.

Left out: tensors of more than two axes (they go to AdamW).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from heliostat.linalg import ConvergenceError, kronecker_sum_from_marginals
from heliostat.linalg.gram import add_lower_gram_
from heliostat.optim.adamw import ADAMW, adamw_group, adamw_step
from heliostat.optim.finite import FiniteStep
from heliostat.optim.reductions import all_finite, cut, whole, wide

MATRICES = "kronecker-sum"
RELATIVE_DAMPING = 1e-4
"""Share of the mean eigenvalue that is added to every marginal: early statistics are rank-deficient."""


class KroneckerSum(FiniteStep):
    r"""``W <- W - lr * U [(U' M V) * (l_i + r_j)^(1/2)] V'`` for matrices; AdamW for the rest.

    ``M`` is the running mean of gradients; eigenbases and l, r are those of running ``E[GG']`` and ``E[G'G]``,
    renewed every ``precondition_every`` steps. With ``graft`` each matrix's step gets the length Adam's would have.

    Args:
        params: parameters or named parameters. Two axes and both sides at most ``max_size``: this rule
            (``rule="kronecker-sum"`` in the groups); everything else: AdamW.
        lr: learning rate of both, in Adam's units.
        betas: of the mean, and of the second moment that grafting and AdamW use.
        statistics_ema: weight of the old ``E[GG']``, ``E[G'G]``.
        precondition_every: steps between eigenbases.
        graft: give each step Adam's length; costs one more number per weight.
        weight_decay: decoupled, for matrices.
        max_size: matrices with a longer side go to AdamW.
        block_size: cut longer sides into the fewest equal parts of at most this and at least half of it, and give each
            block bases of its own; a side that has no such parts stays whole. ``None``: nothing is cut.

    Raises:
        ValueError: a setting out of range.

    Limits:
        1 x q or p x 1 matrices in their eigenbasis, and any G whose second moments are constant: Adam's scaling by the
        root of the second moment.
        no matrices: AdamW.
        a matrix in blocks: each block as a matrix of its own, but for the length that grafting gives them together.

    References:
        The projection is this project's own, from "A = B^-1 + C" (arXiv 2601.18662, reconstruction) with A the second
        moment of the gradient, at power one half as in Adam; statistics, cost and grafting are Shampoo's (Gupta, Koren,
        Singer, 2018; Anil et al., 2020).
    """

    whole_state: ClassVar[frozenset[str]] = frozenset(
        {"mean", "second_moment"}
        | {f"{side}_{what}" for side in ("left", "right") for what in ("statistic", "basis", "values")}
    )

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        statistics_ema: float = 0.95,
        precondition_every: int = 10,
        graft: bool = True,
        weight_decay: float = 0.0,
        max_size: int = 2048,
        block_size: int | None = None,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        if not all(0 <= beta < 1 for beta in (*betas, statistics_ema)):
            raise ValueError("betas and statistics_ema must be in [0, 1)")
        if precondition_every < 1:
            raise ValueError(f"precondition_every must be at least 1, got {precondition_every}")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1 or None, got {block_size}")
        self.block_size = block_size
        self.precondition_every, self.statistics_ema, self.graft = precondition_every, statistics_ema, graft
        given: list[Any] = list(params)
        trainable = [item for item in given if _tensor(item).requires_grad]
        mine = [item for item in trainable if _tensor(item).ndim == 2 and max(_tensor(item).shape) <= max_size]
        ids = {id(_tensor(item)) for item in mine}
        groups: list[dict[str, Any]] = (
            [{"params": mine, "rule": MATRICES, "weight_decay": weight_decay}] if mine else []
        )
        rest = [item for item in trainable if id(_tensor(item)) not in ids]
        named = [item if isinstance(item, tuple) else ("", item) for item in rest]
        others = adamw_group(named, lr, lr, weight_decay, betas)
        if rest and not isinstance(rest[0], tuple):
            others = [{**group, "params": [pair[1] for pair in group["params"]]} for group in others]
        super().__init__([*groups, *others], {"lr": lr, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, self.with_gradient(group)) for group in self.param_groups]
        if not all_finite([p.grad for _, parameters in groups for p in parameters if p.grad is not None]):
            self.skip("the gradient")
            return loss
        for group, parameters in groups:
            if group["rule"] == ADAMW:
                adamw_step(group, parameters, self.state)
                continue
            for parameter in parameters:
                move = self._direction(parameter, group)
                target = wide(parameter)
                if group["weight_decay"]:
                    target.mul_(1 - group["lr"] * group["weight_decay"])
                target.add_(move, alpha=-group["lr"])
                if target is not parameter:
                    parameter.copy_(target)
        self.num_steps += 1
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The preconditioned mean gradient. Sharded parameters are gathered for it, and the result is cut again."""
        full = wide(whole(_gradient(parameter)))
        num_parts = tuple(_num_parts(side, self.block_size) for side in full.shape)
        gradient = _blocks_of(full, *num_parts)
        state = self.state[parameter]
        num, p, q = gradient.shape
        if "left_statistic" not in state:
            state["steps"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["left_statistic"], state["right_statistic"] = (gradient.new_zeros(num, n, n) for n in (p, q))
            if self.graft:
                state["second_moment"] = torch.zeros_like(gradient)
        state["steps"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        for side, rows in (("left", gradient.mT), ("right", gradient)):
            add_lower_gram_(state[f"{side}_statistic"], rows, self.statistics_ema, 1 - self.statistics_ema)
        if (state["steps"] - 1) % self.precondition_every == 0:
            self._renew(state)
        left, right = state["left_basis"], state["right_basis"]
        scale = (state["left_values"][:, :, None] + state["right_values"][:, None, :]).sqrt_()
        move = left @ (left.mT @ state["mean"] @ right).mul_(scale) @ right.mT
        correction = 1 - beta1 ** state["steps"]
        if self.graft:
            state["second_moment"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = state["second_moment"].sqrt().div_((1 - beta2 ** state["steps"]) ** 0.5).add_(group["eps"])
            length = torch.div(state["mean"], root, out=root).norm() / correction
            move.mul_(length / move.norm().clamp(min=1e-30))
        else:
            move.div_(correction)
        return cut(_joined(move, *num_parts), parameter)

    def _renew(self, state: dict[str, Any]) -> None:
        """New eigenbases and l, r of every block; the old ones stay where the statistics carry nothing."""
        left, right = (torch.linalg.eigh(state[f"{side}_statistic"]) for side in ("left", "right"))
        correction = 1 - self.statistics_ema ** state["steps"]
        marginals = [found.eigenvalues.double().clamp(min=0) / correction for found in (left, right)]
        trace = marginals[0].sum(-1, keepdim=True)
        if not bool((trace > 0).any()) and "left_basis" in state:
            return
        # A block without a gradient steps by 0 with any finite scale: this one has l_i + r_j = 2.
        total = torch.where(trace > 0, trace, marginals[0].shape[-1] * marginals[1].shape[-1] / 2)
        damped = [torch.where(trace > 0, m, total / m.shape[-1]) for m in marginals]
        damped = [m + RELATIVE_DAMPING * total / m.shape[-1] for m in damped]
        damped = [m * (total / m.sum(-1, keepdim=True)) for m in damped]
        try:
            solved = kronecker_sum_from_marginals(damped[0], damped[1], tolerance=1e-6, polish=False)
        except ConvergenceError as error:
            solved = error.best
        for side, found, values in (("left", left, solved.left), ("right", right, solved.right)):
            state[f"{side}_basis"], state[f"{side}_values"] = found.eigenvectors, values.to(found.eigenvectors)


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


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

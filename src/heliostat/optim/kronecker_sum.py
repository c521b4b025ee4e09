"""Kronecker-sum preconditioning: Shampoo's statistics, with every entry's second moment from their log-det projection.

    E[G G'] = U diag(lambda) U',  E[G' G] = V diag(mu) V',   sum_j 1/(l_i + r_j) = lambda_i,  sum_i 1/(l_i + r_j) = mu_j

``1/(l_i + r_j)`` models the second moment of entry (i, j) of ``U' G V``; Adam's division by its root becomes a product
with ``(l_i + r_j)^(1/2)``. No second moment of all p x q entries is stored for it.

Left out: tensors of more than two axes (they go to AdamW), and factors split into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from heliostat.linalg import ConvergenceError, kronecker_sum_from_marginals
from heliostat.optim.adamw import ADAMW, adamw_group, adamw_step
from heliostat.optim.finite import FiniteStep
from heliostat.optim.reductions import all_finite, wide

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

    Raises:
        ValueError: a setting out of range.

    Limits:
        1 x q or p x 1 matrices in their eigenbasis, and any G whose second moments are constant: Adam's scaling by the
        root of the second moment.
        no matrices: AdamW.

    References:
        The projection is this project's own, from "A = B^-1 + C" (arXiv 2601.18662, reconstruction) with A the second
        moment of the gradient, at power one half as in Adam; statistics, cost and grafting are Shampoo's (Gupta, Koren,
        Singer, 2018; Anil et al., 2020).
    """

    whole_state: ClassVar[frozenset[str]] = frozenset(
        {"mean", "second_moment", "left_statistic", "right_statistic", "left_basis", "right_basis"}
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
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        if not all(0 <= beta < 1 for beta in (*betas, statistics_ema)):
            raise ValueError("betas and statistics_ema must be in [0, 1)")
        if precondition_every < 1:
            raise ValueError(f"precondition_every must be at least 1, got {precondition_every}")
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
                target = wide(parameter).mul(1 - group["lr"] * group["weight_decay"])
                parameter.copy_(target.add_(move, alpha=-group["lr"]))
        self.num_steps += 1
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The preconditioned mean gradient. Sharded parameters are gathered for it, and the result is cut again."""
        gradient = wide(parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else _gradient(parameter))
        state = self.state[parameter]
        p, q = gradient.shape
        if "left_statistic" not in state:
            state["steps"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["left_statistic"], state["right_statistic"] = gradient.new_zeros(p, p), gradient.new_zeros(q, q)
            if self.graft:
                state["second_moment"] = torch.zeros_like(gradient)
        state["steps"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["left_statistic"].lerp_(gradient @ gradient.T, 1 - self.statistics_ema)
        state["right_statistic"].lerp_(gradient.T @ gradient, 1 - self.statistics_ema)
        if (state["steps"] - 1) % self.precondition_every == 0:
            self._renew(state)
        mean = state["mean"] / (1 - beta1 ** state["steps"])
        left, right = state["left_basis"], state["right_basis"]
        scale = (state["left_values"][:, None] + state["right_values"]).sqrt_()
        move: Tensor = left @ ((left.T @ mean @ right).mul_(scale)) @ right.T
        if self.graft:
            state["second_moment"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (state["second_moment"] / (1 - beta2 ** state["steps"])).sqrt_().add_(group["eps"])
            move.mul_((mean / root).norm() / move.norm().clamp(min=1e-30))
        if isinstance(parameter, DTensor):
            return distribute_tensor(move, parameter.device_mesh, parameter.placements)
        return move

    def _renew(self, state: dict[str, Any]) -> None:
        """New eigenbases and l, r; the old ones stay where the statistics carry nothing."""
        correction = 1 - self.statistics_ema ** state["steps"]
        bases, marginals = [], []
        for side in ("left", "right"):
            values, basis = torch.linalg.eigh(state[f"{side}_statistic"] / correction)
            bases.append(basis)
            marginals.append(values.double().clamp(min=0))
        trace = float(marginals[0].sum())
        if trace > 0:
            damped = [m + RELATIVE_DAMPING * trace / len(m) for m in marginals]
            damped = [m * (trace / m.sum()) for m in damped]
            try:
                solved = kronecker_sum_from_marginals(damped[0], damped[1], tolerance=1e-6)
            except ConvergenceError as error:
                solved = error.best
            values = (solved.left.to(bases[0]), solved.right.to(bases[1]))
        elif "left_basis" in state:
            return
        else:  # no gradient yet: any basis and any finite scale give a step of 0
            values = tuple(torch.ones(len(basis), dtype=basis.dtype, device=basis.device) for basis in bases)
        state["left_basis"], state["right_basis"] = bases
        state["left_values"], state["right_values"] = values


def _tensor(item: Any) -> Tensor:
    tensor: Tensor = item[1] if isinstance(item, tuple) else item
    return tensor


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

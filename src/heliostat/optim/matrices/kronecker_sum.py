"""Kronecker-sum preconditioning: Shampoo's statistics, with every entry's second moment from their log-det projection.

    E[G G'] = U diag(lambda) U',  E[G' G] = V diag(mu) V',   sum_j 1/(l_i + r_j) = lambda_i,  sum_i 1/(l_i + r_j) = mu_j

``1/(l_i + r_j)`` models the second moment of entry (i, j) of ``U' G V``. Adam's division by its root becomes a product
with ``(l_i + r_j)^(1/2)``, and no second moment of all p x q entries is stored for it.

A step multiplies each p x q gradient by its bases and back, and forms ``GG'`` and ``G'G``: about ``5 p q (p + q)``
FLOPs, whatever the batch size. Splitting long sides into blocks, as libraries for Shampoo do, makes it less.

Left out: blocks, sharded weights and everything but matrices (``matrix_optimizer``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg import ConvergenceError, kronecker_sum_from_marginals
from heliostat.linalg.eigenbasis import eigenbasis
from heliostat.linalg.gram import add_lower_gram_
from heliostat.optim.base.settings import settings_from
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.matrices.matrix_optimizer import MatrixOptimizer, MatrixSettings, Params

RELATIVE_DAMPING = 1e-4
"""Share of the mean eigenvalue that is added to every marginal: early statistics are rank-deficient."""


@dataclass(frozen=True, kw_only=True)
class KroneckerSumSettings(MatrixSettings):
    """Hyperparameters of ``KroneckerSum``.

    Attributes:
        graft: give each matrix's step Adam's length; costs one more number per weight.
    """

    graft: bool = True


class KroneckerSum(MatrixOptimizer):
    r"""``W <- W - lr * U [(U' M V) * (l_i + r_j)^(1/2)] V'`` for matrices; AdamW for the rest.

    ``M`` is the running mean of gradients; eigenbases and l, r are those of running ``E[GG']`` and ``E[G'G]``,
    renewed every ``precondition_every`` steps. With ``graft`` each matrix's step gets the length Adam's would have.

    Args:
        params: module, parameters, named parameters, or groups. Two axes and both sides at most ``max_size``: this rule
            (``rule="kronecker-sum"`` in the groups); everything else: AdamW.
        lr: learning rate of both, in Adam's units.
        settings: hyperparameters; the defaults of ``KroneckerSumSettings`` where not given.
        process_group: ranks whose weights and gradients must agree; ``None``: the default group, ``"alone"``: none.
        hyperparameters: fields of ``KroneckerSumSettings`` by name, such as ``block_size=256``; they replace those of
            ``settings``.

    Raises:
        TypeError: a keyword is no field of ``KroneckerSumSettings``.
        ValueError: a setting out of range.

    Limits:
        1 x q or p x 1 matrices in their eigenbasis, and any G whose second moments are constant: Adam's scaling by the
        root of the second moment.
        no matrices: AdamW.
        a matrix in blocks: each block as a matrix of its own, but for the length that grafting gives them together.
        gradients times c: the same direction, also where their squares are too small for float32.

    References:
        The projection is this project's own, from "A = B^-1 + C" (arXiv 2601.18662, reconstruction) with A the second
        moment of the gradient, at power one half as in Adam; statistics, cost and grafting are Shampoo's (Gupta, Koren,
        Singer, 2018; Anil et al., 2020).
    """

    rule: ClassVar[str] = "kronecker-sum"
    whole_state: ClassVar[frozenset[str]] = frozenset(
        {"mean", "second_moment", "mean_entry"}
        | {f"{side}_{what}" for side in ("left", "right") for what in ("statistic", "basis", "values")}
    )

    settings: KroneckerSumSettings

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        settings: KroneckerSumSettings | None = None,
        *,
        process_group: ProcessGroup = None,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(params, lr, settings_from(KroneckerSumSettings, settings, hyperparameters), process_group)

    def preconditioned(
        self, gradient: Float[Tensor, "block p q"], state: dict[str, Any], group: dict[str, Any]
    ) -> Float[Tensor, "block p q"]:
        """Return ``U [(U' M V) * (l_i + r_j)^(1/2)] V'``, as long as Adam's step where grafted."""
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        for side, rows in (("left", gradient.mT), ("right", gradient)):
            add_lower_gram_(
                state[f"{side}_statistic"], rows, self.settings.statistics_ema, 1 - self.settings.statistics_ema
            )
        if (state["steps"] - 1) % self.settings.precondition_every == 0 or not state["is_informed"]:
            self._renew(state)
        left, right = state["left_basis"], state["right_basis"]
        scale = (state["left_values"][:, :, None] + state["right_values"][:, None, :]).sqrt_()
        move: Tensor = left @ (left.mT @ state["mean"] @ right).mul_(scale) @ right.mT
        correction = 1 - beta1 ** state["steps"]  # Adam's, of the mean
        if not self.settings.graft:
            # The values are those of marginals with a mean entry of 1 (`_renew`): the true size enters here.
            return move.mul_((state["mean_entry"][:, None, None].rsqrt() / correction).to(move))
        state["second_moment"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Adam's own step, of which only the length is used.
        root = state["second_moment"].sqrt().div_((1 - beta2 ** state["steps"]) ** 0.5).add_(group["eps"])
        length = _norm(torch.div(state["mean"], root, out=root)) / correction
        return move.div_(_size(move)).mul_(length / move.norm().clamp(min=torch.finfo(move.dtype).tiny))

    def begin(self, blocks: Float[Tensor, "block p q"], state: dict[str, Any]) -> None:
        """Create statistics of zero, and bases and values with ``l_i + r_j = 1``."""
        num, p, q = blocks.shape
        state["mean"], state["is_informed"] = torch.zeros_like(blocks), False
        state["mean_entry"] = blocks.new_full((num,), 0.5, dtype=torch.float64)
        if self.settings.graft:
            state["second_moment"] = torch.zeros_like(blocks)
        for side, n in (("left", p), ("right", q)):
            state[f"{side}_statistic"] = blocks.new_zeros(num, n, n)
            state[f"{side}_basis"] = torch.eye(n, dtype=blocks.dtype, device=blocks.device).repeat(num, 1, 1)
            state[f"{side}_values"] = blocks.new_full((num, n), 0.5)

    def _renew(self, state: dict[str, Any]) -> None:
        """Renew eigenbases and l, r of every block; without any gradient so far the old ones stay.

        The values belong to marginals scaled to a mean entry of 1, because the unscaled ones may be out of the range of
        float32.
        """
        # In float64: float32 misplaces small eigenvalues by 1e-5 of the largest, as much as the damping of a statistic
        # of low rank, and their scale is the largest. Steps would then depend on the order of sums within LAPACK.
        (left, left_basis), (right, right_basis) = (
            eigenbasis(state[f"{side}_statistic"].double()) for side in ("left", "right")
        )
        correction = 1 - self.settings.statistics_ema ** state["steps"]
        # The eigenvalues of E[GG'] and E[G'G] are row and column sums of one p x q table of second moments.
        marginals = [values.clamp(min=0) / correction for values in (left, right)]
        trace = marginals[0].sum(-1, keepdim=True)
        if not bool((trace > 0).any()):
            return
        # A block without a gradient steps by 0 with any finite scale; it gets the marginals of a constant table.
        num_entries = marginals[0].shape[-1] * marginals[1].shape[-1]
        total = torch.where(trace > 0, trace, num_entries / 2)
        damped = [torch.where(trace > 0, m, total / m.shape[-1]) for m in marginals]
        damped = [m + RELATIVE_DAMPING * total / m.shape[-1] for m in damped]
        # Both sides must have the same sum, or no table has them as marginals; rounding and damping have shifted it.
        damped = [m * (num_entries / m.sum(-1, keepdim=True)) for m in damped]
        try:
            solved = kronecker_sum_from_marginals(damped[0], damped[1], tolerance=1e-6, polish=False)
        except ConvergenceError as error:
            solved = error.best  # a preconditioner need not be exact
        state["mean_entry"], state["is_informed"] = total.squeeze(-1) / num_entries, True
        for side, basis, values in (("left", left_basis, solved.left), ("right", right_basis, solved.right)):
            dtype = state[f"{side}_statistic"].dtype
            state[f"{side}_basis"], state[f"{side}_values"] = basis.to(dtype), values.to(dtype)


def _size(move: Tensor) -> Tensor:
    """Return the largest entry, or 1 for zeros; entries divided by it have squares that neither overflow nor vanish."""
    largest = move.abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _norm(move: Tensor) -> Tensor:
    """Return the norm, also where squares of entries are out of the dtype's range."""
    size = _size(move)
    norm: Tensor = size * (move / size).norm()
    return norm

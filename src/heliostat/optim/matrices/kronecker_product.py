"""Kronecker-product preconditioning: the second moment's log-det projection on products, found by alternation.

    A <- E[G B^-1 G'] / q,    B <- E[G' A^-1 G] / p,    step A^(-1/2) M B^(-1/2)

``A (x) B`` is the covariance of the matrix-normal distribution closest to the gradients in Kullback-Leibler
divergence. Running means replace the expectations. The Kronecker sum (``kronecker_sum``) models the inverse instead.

Everything but the bases is stored in the coordinates of the bases. With ``A = U a U'`` and ``B = V b V'``, one rotated
gradient ``U' G V`` updates both factors and the mean, and inverses are divisions by the factors' diagonals. A step
costs about ``5 p q (p + q)`` FLOPs, whatever the batch size.

Left out: blocks, sharded weights and everything but matrices (``matrix_optimizer``); grafting, since the step has a
length of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.eigenbasis import eigenbasis, power_of_two
from heliostat.linalg.gram import add_lower_gram_, gram
from heliostat.optim.base.settings import settings_from
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.matrices.matrix_optimizer import MatrixOptimizer, MatrixSettings, Params

RELATIVE_DAMPING = 1e-3
"""Least eigenvalue of a factor, as a share of the mean eigenvalue.

Early gradients are rank-deficient. In directions where they are zero, float32 holds rounding errors alone, and a ten
times smaller share would amplify those to a hundredth of a step."""
NUM_ALTERNATIONS = 3
"""Alternations of the two formulas on the first gradient alone."""
STRAIGHTEN_EVERY = 50
"""Renewals of the bases between two corrections of their accumulated rounding."""


@dataclass(frozen=True, kw_only=True)
class KroneckerProductSettings(MatrixSettings):
    """Hyperparameters of ``KroneckerProduct``."""


class KroneckerProduct(MatrixOptimizer):
    r"""``W <- W - lr * A^(-1/2) M B^(-1/2)`` for matrices; AdamW for the rest.

    ``M`` is the running mean of gradients. ``A`` and ``B`` are the running means of ``G B^-1 G' / q`` and
    ``G' A^-1 G / p``, each with the other's last value. Their eigenbases are renewed every ``precondition_every``
    steps, and at every step until that many have passed. Between renewals the diagonals in the current bases replace
    the eigenvalues.

    Args:
        params: module, parameters, named parameters, or groups. Two axes and both sides at most ``max_size``: this rule
            (``rule="kronecker-product"`` in the groups); everything else: AdamW.
        lr: learning rate of both, in Adam's units.
        settings: hyperparameters; the defaults of ``KroneckerProductSettings`` where not given.
        process_group: ranks whose weights and gradients must agree; ``None``: the default group, ``"alone"``: none.
        hyperparameters: fields of ``KroneckerProductSettings`` by name, such as ``block_size=256``; they replace those
            of ``settings``.

    Raises:
        TypeError: a keyword is no field of ``KroneckerProductSettings``.
        ValueError: a setting out of range.

    Limits:
        ``precondition_every=1``: the two formulas with exact inverses, written out.
        one gradient over and over: a step along it with all singular values equal, as Muon's.
        gradients times c: the same step, whatever their size. Rotated gradients: the rotated step.
        no matrices: AdamW.
        a matrix in blocks: each block as a matrix of its own.

    References:
        KL-Shampoo (Lin et al., 2025, arXiv 2509.03378), whose two formulas these are; the start on the first gradient,
        the damping, and coordinates that make inverses unnecessary are ours.
    """

    rule: ClassVar[str] = "kronecker-product"
    whole_state: ClassVar[frozenset[str]] = frozenset(
        {"mean", "started", "left_factor", "right_factor", "left_basis", "right_basis"}
    )

    settings: KroneckerProductSettings

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        settings: KroneckerProductSettings | None = None,
        *,
        process_group: ProcessGroup = None,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(params, lr, settings_from(KroneckerProductSettings, settings, hyperparameters), process_group)

    def preconditioned(
        self, gradient: Float[Tensor, "block p q"], state: dict[str, Any], group: dict[str, Any]
    ) -> Float[Tensor, "block p q"]:
        """Return ``U [(U' M V) / (a_i b_j)^(1/2)] V'``."""
        # A block with a gradient of zeros has no information on its second moment, so its factors stay as they are. A
        # block that starts in this step is not counted either: its factors are already those of this gradient.
        counted = state["started"] & (gradient != 0).any(-1).any(-1)
        if state["num_waiting"]:
            self._start(gradient, state)
        beta1 = group["betas"][0]
        # The gradient in the coordinates of the bases, where the mean and both factors are stored.
        turned = state["left_basis"].mT @ gradient @ state["right_basis"]
        state["mean"].lerp_(turned, 1 - beta1)
        self._update(turned, counted[:, None, None], state)
        # A basis from one gradient is arbitrary in the directions where that gradient is zero, so every step renews the
        # bases at first.
        if state["steps"] < state["young_until"] or (state["steps"] - 1) % self.settings.precondition_every == 0:
            _renew(state)
        if state["steps"] % (STRAIGHTEN_EVERY * self.settings.precondition_every) == 0:
            _straighten(state)
        # M_ij / (a_i b_j)^(1/2) with Adam's bias correction of M, one root after the other: their product may overflow.
        scaled = state["mean"] * _inverse_root(state["left_factor"])[:, :, None]
        scaled.mul_(_inverse_root(state["right_factor"])[:, None, :]).div_(1 - beta1 ** state["steps"])
        move: Tensor = state["left_basis"] @ scaled @ state["right_basis"].mT
        return move

    def begin(self, blocks: Float[Tensor, "block p q"], state: dict[str, Any]) -> None:
        """Create identities as bases and factors, and a mean of zero."""
        num, p, q = blocks.shape
        state["mean"], state["num_waiting"], state["young_until"] = torch.zeros_like(blocks), num, 0
        state["started"] = torch.zeros(num, dtype=torch.bool, device=blocks.device)
        for side, n in (("left", p), ("right", q)):
            for what in ("factor", "basis"):
                state[f"{side}_{what}"] = torch.eye(n, dtype=blocks.dtype, device=blocks.device).repeat(num, 1, 1)

    def _start(self, gradient: Tensor, state: dict[str, Any]) -> None:
        """Compute bases and factors of the blocks whose first gradient this is; blocks without one wait for theirs.

        Both factors get one power of the gradient's size. With all of ``g^2`` in one of them, that one would leave the
        range of float32.
        """
        fresh = ~state["started"] & (gradient != 0).any(-1).any(-1)
        if not bool(fresh.any()):
            return
        size = power_of_two(gradient[fresh].abs().amax((1, 2)))[:, None]
        own = gradient[fresh] / size[:, :, None]
        left, right = (eigenbasis(gram(rows))[1] for rows in (own.mT, own))  # of G G' and of G' G
        # In these bases the two formulas act on diagonals: a_i <- mean_j g_ij^2 / b_j, and b_j <- mean_i g_ij^2 / a_i.
        squares = (left.mT @ own @ right).square()
        b = squares.mean((1, 2))[:, None].expand(-1, own.shape[-1])
        for _ in range(
            NUM_ALTERNATIONS
        ):  # each formula holds the other factor fixed; damped, since g may have low rank
            a = _damped((squares / b[:, None, :]).mean(2))
            b = _damped((squares / a[:, :, None]).mean(1))
        for side, basis, values in (("left", left, a), ("right", right, b)):
            state[f"{side}_basis"][fresh], state[f"{side}_factor"][fresh] = basis, torch.diag_embed(values * size)
        state["started"] |= fresh
        state["num_waiting"] = int((~state["started"]).sum())
        state["young_until"] = state["steps"] + self.settings.precondition_every

    def _update(self, turned: Tensor, counted: Tensor, state: dict[str, Any]) -> None:
        """Update both factors by one gradient in their bases, each divided by the other's values before this step.

        Args:
            turned: ``U' G V``, [block, p, q].
            counted: whether a block's gradient counts, [block, 1, 1]; the factors of others keep their values.
        """
        turned = turned * counted
        # Rows r with r'r = G B^-1 G' for the left factor, and G' A^-1 G for the right one, all in the bases.
        over_right = (turned * _inverse_root(state["right_factor"])[:, None, :]).mT
        over_left = turned * _inverse_root(state["left_factor"])[:, :, None]
        for side, rows in (("left", over_right), ("right", over_left)):
            # The decay differs by block, so it is applied before the product and not inside it.
            state[f"{side}_factor"].mul_(torch.where(counted, self.settings.statistics_ema, 1.0))
            add_lower_gram_(state[f"{side}_factor"], rows, 1.0, (1 - self.settings.statistics_ema) / rows.shape[-2])


def _damped(values: Tensor) -> Tensor:
    """Add ``RELATIVE_DAMPING`` of their mean to eigenvalues, [block, n]."""
    return values + RELATIVE_DAMPING * values.mean(-1, keepdim=True)


def _inverse_root(factor: Float[Tensor, "block n n"]) -> Float[Tensor, "block n"]:
    """Return one over the root of the diagonal, entries below ``RELATIVE_DAMPING`` of its mean raised to that."""
    values = factor.diagonal(dim1=-2, dim2=-1)
    return values.clamp(min=RELATIVE_DAMPING * values.mean(-1, keepdim=True)).rsqrt_()


def _renew(state: dict[str, Any]) -> None:
    """Rotate bases, factors and mean to the factors' eigenvectors, in whose coordinates the factors are diagonal."""
    turns = []
    for side in ("left", "right"):
        values, vectors = eigenbasis(state[f"{side}_factor"])
        state[f"{side}_factor"] = torch.diag_embed(values)
        state[f"{side}_basis"] = state[f"{side}_basis"] @ vectors  # the eigenvectors are in the old coordinates
        turns.append(vectors)
    state["mean"] = turns[0].mT @ state["mean"] @ turns[1]


def _straighten(state: dict[str, Any]) -> None:
    """Move each basis one Newton step ``Q <- Q (3 I - Q'Q) / 2`` towards the nearest orthogonal matrix.

    A basis is a product of many rotations, whose rounding errors add up.
    """
    for key in ("left_basis", "right_basis"):
        state[key] = torch.baddbmm(state[key], state[key], gram(state[key]), beta=1.5, alpha=-0.5)

"""Inverse of a positive definite matrix by Newton's iteration ``X <- X (2 I - A X)``: matrix products only.

The residual ``R = I - A X`` is squared by every step, so the iteration converges from any start with ``|R| < 1``. A
warm start from the inverse of a nearby matrix needs one or two steps.

Left out: indefinite matrices, roots other than the inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class NotPositiveDefinite(ValueError):
    """A matrix that should be positive definite is not, or is not finite."""


@dataclass(frozen=True, slots=True)
class NewtonInverse:
    """An approximate inverse with its evidence.

    Attributes:
        residual: ``|I - A X|_F`` of ``inverse``.
        num_steps: Newton steps taken, those of an abandoned warm start included.
        restarted: whether the warm start was abandoned, because it would not have converged.
        used_cholesky: whether rounding kept Newton above ``tolerance``, so that the answer is a direct inverse.
    """

    inverse: Float[Tensor, "n n"]
    residual: float
    num_steps: int
    restarted: bool
    used_cholesky: bool


def newton_inverse(
    matrix: Float[Tensor, "n n"],
    start: Float[Tensor, "n n"] | None = None,
    tolerance: float = 1e-2,
    max_steps: int = 40,
) -> NewtonInverse:
    """Invert a symmetric positive definite A, to ``|I - A X|_F <= tolerance * sqrt(n)``.

    Args:
        start: an earlier inverse; replaced by the cold start ``I / |A|_F`` where ``|I - A X|_F >= 1``.
        tolerance: largest accepted root mean square of the residual's rows.

    Raises:
        NotPositiveDefinite: A is not positive definite or not finite.

    Limits:
        ``start`` the inverse itself: returned unchanged, no step. A = c I: ``I / c``.
        The cold start converges for every positive definite A, in about ``2 log2(cond)`` steps.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    bound = tolerance * math.sqrt(len(matrix))
    num_steps, restarted = 0, False
    if start is not None:
        x = start
        residual = identity - matrix @ x
        size = float(residual.norm())
        restarted = not size < 1
    if start is None or restarted:
        x = identity / matrix.norm()
        residual = identity - matrix @ x
        size = float(residual.norm())
    best, best_size = x, size
    while size > bound and num_steps < max_steps and math.isfinite(size):
        x = x + x @ residual
        x = (x + x.T) / 2
        residual = identity - matrix @ x
        size = float(residual.norm())
        num_steps += 1
        if not size < best_size:  # |R^2| < |R| without rounding, so rounding dominates now
            break
        best, best_size = x, size
    if best_size <= bound:
        return NewtonInverse(best, best_size, num_steps, restarted, False)
    direct = direct_inverse(matrix)
    return NewtonInverse(direct, float((identity - matrix @ direct).norm()), num_steps, restarted, True)


def direct_inverse(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Invert a symmetric positive definite A by Cholesky's factorisation, in about n^3 multiplications.

    Raises:
        NotPositiveDefinite: A is not positive definite or not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise NotPositiveDefinite("the matrix to invert is not positive definite; raise the damping")
    return torch.cholesky_inverse(factor)

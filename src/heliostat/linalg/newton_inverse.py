"""Inverse of a positive definite matrix by Newton's iteration ``X <- X (2 I - A X)``: matrix products only.

The residual ``R = I - A X`` is squared by every step, so the iteration converges from any start with ``|R| < 1``. A
warm start from the inverse of a nearby matrix needs one or two steps. Where an earlier inverse is of no use any more, a
Cholesky factorisation takes over: it costs about one product of two n x n matrices, a cold start a dozen or more.

Left out: indefinite matrices, roots other than the inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 128
"""Rows up to which products cost next to nothing: a residual is computed at once, a cold start is Newton's."""


@dataclass(frozen=True, slots=True)
class NewtonInverse:
    """An approximate inverse with its evidence.

    Attributes:
        residual: ``|I - A X|_F`` of ``inverse``; ``None`` for a direct inverse, which is not multiplied out.
        num_steps: Newton steps taken.
        restarted: whether the warm start was of no use.
        used_cholesky: whether the answer is a direct inverse: there was no useful start, or rounding kept Newton above
            ``tolerance``.
    """

    inverse: Float[Tensor, "n n"]
    residual: float | None
    num_steps: int
    restarted: bool
    used_cholesky: bool


def newton_inverse(
    matrix: Float[Tensor, "n n"],
    start: Float[Tensor, "n n"] | None = None,
    tolerance: float = 1e-2,
    max_steps: int = 40,
) -> NewtonInverse:
    """``A^-1`` of a symmetric positive definite A, to ``|I - A X|_F <= tolerance * sqrt(n)``.

    Args:
        start: an earlier inverse; left for a direct inverse where ``|I - A X|_F >= 1``. ``None``: the cold start
            ``I / |A|_F`` up to ``SMALL`` rows, a direct inverse above.
        tolerance: largest accepted root mean square of the residual's rows.

    Raises:
        ValueError: A is not positive definite or not finite.

    Limits:
        ``start`` the inverse itself: returned unchanged, no step. A = c I: ``I / c``.
        The cold start converges for every positive definite A, in about ``2 log2(cond)`` steps.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    bound = tolerance * math.sqrt(len(matrix))
    num_steps = 0
    if start is None and len(matrix) > SMALL:
        return _direct(matrix, num_steps, restarted=False)
    x = identity / matrix.norm() if start is None else start
    residual = _residual(matrix, x, identity, give_up=start is not None)
    if residual is None:
        return _direct(matrix, num_steps, restarted=True)
    size = float(residual.norm())
    best, best_size = x, size
    while size > bound and num_steps < max_steps and math.isfinite(size):
        x = x + x @ residual
        x = (x + x.T) / 2
        residual = identity - matrix @ x
        size = float(residual.norm())
        num_steps += 1
        if not size < best_size:  # |R^2| < |R| without rounding: it has taken over
            break
        best, best_size = x, size
    if best_size <= bound:
        return NewtonInverse(best, best_size, num_steps, False, False)
    return _direct(matrix, num_steps, restarted=False)


def _residual(matrix: Tensor, x: Tensor, identity: Tensor, give_up: bool) -> Tensor | None:
    """``I - A X``; ``None`` where it is to be given up at a norm of 1, which some columns often show already."""
    num_first = -(-len(x) // 8) if give_up and len(x) > SMALL else len(x)
    parts, square = [], 0.0
    for columns in (slice(0, num_first), slice(num_first, len(x))):
        parts.append(identity[:, columns] - matrix @ x[:, columns])
        square += float(parts[-1].norm()) ** 2
        if give_up and not square < 1:
            return None
    return parts[0] if num_first == len(x) else torch.cat(parts, 1)


def _direct(matrix: Tensor, num_steps: int, restarted: bool) -> NewtonInverse:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise ValueError("the matrix to invert is not positive definite; raise the damping")
    return NewtonInverse(torch.cholesky_inverse(factor), None, num_steps, restarted, True)

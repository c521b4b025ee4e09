"""Damped Newton for -log det, with every iterate feasible: the one iteration behind all methods without closed form.

    minimise f(x) = -log det M(x) + a·x,   M(x) = M_0 + Σ x_k E_k,   over {M(x) ≻ 0}

The dual (M = B ∈ S⊥, a = inner(A)) and the primal (M = A - C, C ∈ S, a = 0) are both of this form. f is standard
self-concordant: with the Newton decrement λ, the step 1/(1 + λ) is always feasible and lowers f by at least
λ - log(1 + λ), and within λ < 1/4 full steps converge quadratically. So the line search tries longer steps first and
ends at that one. Batched over one axis; finished members of a batch stand still. Left out: where to start
(``starts``), the accuracy of the result (``certificate``).

References:
    Y. Nesterov, A. Nemirovskii (1994), Interior-Point Polynomial Algorithms (self-concordance; reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heliostat.linalg.logdet.bases import Basis

QUADRATIC = 0.25  # decrement below which a full step is safe
LAST_STEP = 1e-8  # decrement below which one more full step reaches rounding
STALLED = 1e-3  # below this, a decrement that has not halved in two steps is rounding
LOOSEST_FORCING = 0.1
MAX_CG_STEPS = 500


@dataclass
class LogDet:
    """A point x with f(x), which is infinite where M(x) is not positive definite, and the Cholesky factor of M(x).

    A problem without such a matrix keeps in ``factor`` whatever its derivatives need.
    """

    x: Float[Tensor, "batch size"]
    value: Float[Tensor, " batch"]
    factor: Float[Tensor, "batch ..."]

    @cached_property
    def inverse(self) -> Float[Tensor, "batch n n"]:
        """M(x)⁻¹."""
        return torch.cholesky_inverse(self.factor)


class Problem(Protocol):
    """A convex problem for ``minimize``."""

    def evaluate(self, x: Float[Tensor, "batch size"]) -> LogDet: ...

    def gradient(self, point: LogDet) -> Float[Tensor, "batch size"]: ...


Direction = Callable[[LogDet, Tensor, Tensor], Tensor]  # (point, gradient, forcing) -> direction


@dataclass(frozen=True, slots=True)
class Minimum:
    """The end point of ``minimize``, after how many Newton steps, and which members of the batch settled."""

    point: LogDet
    num_steps: int
    settled: Bool[Tensor, " batch"]

    @property
    def x(self) -> Float[Tensor, "batch size"]:
        return self.point.x


@dataclass(frozen=True)
class LogDetProblem:
    """-log det(offset + Σ x_k E_k) + linear·x."""

    basis: Basis
    linear: Float[Tensor, "batch size"] | None = None
    offset: Float[Tensor, "batch n n"] | None = None

    def matrix(self, x: Float[Tensor, "batch size"]) -> Float[Tensor, "batch n n"]:
        """M(x)."""
        combined = self.basis.combine(x)
        return combined if self.offset is None else self.offset + combined

    def evaluate(self, x: Tensor) -> LogDet:
        factor, info = torch.linalg.cholesky_ex(self.matrix(x))
        value = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.linear is not None:
            value = value + (self.linear * x).sum(-1)
        return LogDet(x, torch.where((info == 0) & value.isfinite(), value, torch.inf), factor)

    def gradient(self, point: LogDet) -> Tensor:
        gradient = -self.basis.inner(point.inverse)
        return gradient if self.linear is None else self.linear + gradient

    def dense_direction(self, point: LogDet, gradient: Tensor, forcing: Tensor) -> Tensor:
        """Return the exact Newton direction from the assembled Hessian."""
        del forcing
        return -solve_hessian(self.basis.hessian(point.inverse), gradient)

    def cg_direction(self, point: LogDet, gradient: Tensor, forcing: Tensor) -> Tensor:
        """Return the Newton direction by preconditioned conjugate gradients to relative accuracy ``forcing``."""
        inverse, matrix = point.inverse, self.matrix(point.x)
        return conjugate_gradients(
            lambda v: self.basis.hessian_product(inverse, v),
            -gradient,
            lambda v: self.basis.inverse_hessian_guess(matrix, v),
            forcing,
        )


def solve_hessian(hessian: Float[Tensor, "batch size size"], rhs: Float[Tensor, "batch size"]) -> Tensor:
    """Solve a positive definite system after scaling it to unit diagonal, with the least ridge that factorises."""
    root = hessian.diagonal(dim1=-2, dim2=-1).sqrt()
    scaled = hessian / root[:, :, None] / root[:, None, :]
    factor, info = torch.linalg.cholesky_ex(scaled)
    ridge = 1e-15
    while bool((info != 0).any()) and ridge < 1:
        ridge *= 10
        eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
        factor, info = torch.linalg.cholesky_ex(scaled + ridge * (info != 0)[:, None, None] * eye)
    return torch.cholesky_solve((rhs / root)[..., None], factor)[..., 0] / root


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    rhs: Float[Tensor, "batch size"],
    precondition: Callable[[Tensor], Tensor],
    tolerance: Float[Tensor, " batch"],
) -> Float[Tensor, "batch size"]:
    """Preconditioned conjugate gradients; each member stops at its own relative residual in the preconditioned norm."""
    x, residual = torch.zeros_like(rhs), rhs.clone()
    z = precondition(residual)
    direction, rho = z, (residual * z).sum(-1)
    goal = rho * tolerance**2
    for _ in range(MAX_CG_STEPS):
        active = rho > goal
        if not bool(active.any()):
            break
        applied = product(direction)
        curvature = (direction * applied).sum(-1)
        step = torch.where(active & (curvature > 0), rho / curvature, 0.0)[:, None]
        x = x + step * direction
        residual = residual - step * applied
        z = precondition(residual)
        rho_next = (residual * z).sum(-1)
        direction = z + (rho_next / rho)[:, None] * direction
        rho = torch.where(active, rho_next, rho)
    return x


def minimize(
    problem: Problem,
    start: Float[Tensor, "batch size"],
    direction_of: Direction,
    max_steps: int = 200,
    watch: Callable[[LogDet], None] | None = None,
    is_done: Callable[[Tensor], Tensor] | None = None,
) -> Minimum:
    """Minimize by damped Newton from a feasible start until rounding; iterates are feasible and never get worse.

    Args:
        direction_of: turns (point, gradient, forcing) into a descent direction; ``forcing`` is the relative accuracy
            that keeps the outer convergence superlinear.
        watch: called with every accepted point; may raise to stop.
        is_done: from the gradient, which members of the batch are good enough and stand still from here on.

    Raises:
        ValueError: the start is not feasible.
    """
    point = problem.evaluate(start)
    if not bool(point.value.isfinite().all()):
        raise ValueError("Newton's start is not positive definite; pass a B in S⊥ that is")
    active = torch.ones_like(point.value, dtype=torch.bool)
    settled = torch.zeros_like(active)
    decrement = before = torch.full_like(point.value, torch.inf)
    steps = 0
    while steps < max_steps and bool(active.any()):
        forcing = decrement.clamp(1e-8, LOOSEST_FORCING)
        gradient = problem.gradient(point)
        if is_done is not None:
            met = active & is_done(gradient)
            settled, active = settled | met, active & ~met
            if not bool(active.any()):
                break
        direction = direction_of(point, gradient, forcing)
        earlier, before = torch.maximum(before, decrement), decrement
        decrement = (-(gradient * direction).sum(-1)).clamp(min=0).sqrt()
        at_floor = (decrement < STALLED) & (decrement > earlier / 2)
        settled = settled | (active & (at_floor | (decrement <= LAST_STEP)))
        active = active & ~at_floor & direction.isfinite().all(-1)
        point, moved = _line_search(problem, point, direction, decrement, active)
        active = active & moved & ~settled
        steps += 1
        if watch is not None:
            watch(point)
    return Minimum(point, steps, settled)


def _line_search(
    problem: Problem, point: LogDet, direction: Tensor, decrement: Tensor, active: Tensor
) -> tuple[LogDet, Tensor]:
    """Halve from the full step down to 1/(1 + λ), which self-concordance guarantees; (new point, who moved)."""
    safe = 1 / (1 + decrement)
    step = active.to(point.value)
    while True:
        trial = problem.evaluate(point.x + torch.where(active, step, 0.0)[:, None] * torch.nan_to_num(direction))
        falls = trial.value <= point.value - step * decrement**2 / 4
        good = trial.value.isfinite() & (falls | (decrement <= QUADRATIC) | (step <= safe))
        if bool((good | ~active).all()):
            return trial, active
        hopeless = active & ~good & (step <= safe)
        if bool(hopeless.any()):  # only rounding leads here: these members do not move
            active = active & ~hopeless
            continue
        halved = torch.where(step / 2 < safe, torch.minimum(safe, step), step / 2)
        step = torch.where(good, step, halved)

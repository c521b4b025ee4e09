"""Derivatives of B and C with respect to A, from the optimality condition instead of the iteration.

With W = B⁻¹ and the Hessian 𝓗 = Π W · W Π on S⊥,

    dB = -𝓗⁻¹ Π_{S⊥}(dA),      dC = dA + W dB W,

so a loss with cotangents (B̄, C̄) has the gradient  Ā = C̄ - 𝓗⁻¹ Π_{S⊥}(B̄ + W C̄ W). Where S is the smaller side the
same is computed there: with 𝓗_S = Π B · B Π on S and M = B B̄ B + C̄,  Ā = -B B̄ B + B 𝓗_S⁻¹(Π_S M) B. One solve, whatever
method found B. Left out: second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from heliostat.linalg.logdet.bases import Basis
from heliostat.linalg.logdet.newton import conjugate_gradients, solve_hessian
from heliostat.linalg.logdet.subspaces.base import Subspace

ASSEMBLED_HESSIAN = 1000  # parameters up to which the backward system is factorised instead of iterated on


class _Attach(torch.autograd.Function):
    """B and C as functions of A, with their values given."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, C: Tensor, subspace: Subspace) -> tuple[Tensor, Tensor]:
        ctx.subspace = subspace
        ctx.save_for_backward(B)
        return B.reshape(A.shape).to(A.dtype), C.reshape(A.shape).to(A.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor, grad_C: Tensor) -> tuple[Tensor, None, None, None]:
        (B,) = ctx.saved_tensors
        B_bar, C_bar = (_symmetric(grad.to(torch.float64).reshape(B.shape)) for grad in (grad_B, grad_C))
        pull_back = through_dual if ctx.subspace.codimension <= ctx.subspace.dimension else through_primal
        grad = pull_back(B, B_bar, C_bar, ctx.subspace)
        return grad.reshape(grad_B.shape).to(grad_B.dtype), None, None, None


def attach(A: Tensor, B: Tensor, C: Tensor, subspace: Subspace) -> tuple[Tensor, Tensor]:
    """Return B and C in the shape and dtype of A, differentiable with respect to it."""
    attached: tuple[Tensor, Tensor] = _Attach.apply(A, B, C, subspace)  # type: ignore[no-untyped-call]
    return attached


def divergence(A: Float[Tensor, "*batch n n"], B: Float[Tensor, "*batch n n"], n: int) -> Float[Tensor, "*batch"]:
    """Compute KL(N(0,A) ‖ N(0,B⁻¹)) as a differentiable function of A and B."""
    return ((A * B).sum((-2, -1)) - n - torch.logdet(A) - torch.logdet(B)) / 2


def through_dual(
    B: Float[Tensor, "batch n n"],
    B_bar: Float[Tensor, "batch n n"],
    C_bar: Float[Tensor, "batch n n"],
    subspace: Subspace,
) -> Float[Tensor, "batch n n"]:
    """Pull both gradients back to A by a system in the dimensions of S⊥."""
    basis, inverse = subspace.complement_basis, torch.cholesky_inverse(torch.linalg.cholesky(B))
    pulled = basis.inner(B_bar + inverse @ C_bar @ inverse)
    return C_bar - basis.combine(_solve(basis, inverse, B, pulled))


def through_primal(
    B: Float[Tensor, "batch n n"],
    B_bar: Float[Tensor, "batch n n"],
    C_bar: Float[Tensor, "batch n n"],
    subspace: Subspace,
) -> Float[Tensor, "batch n n"]:
    """Pull both gradients back to A by a system in the dimensions of S."""
    around = B @ B_bar @ B
    if not subspace.dimension:
        return -around
    basis, inverse = subspace.basis, torch.cholesky_inverse(torch.linalg.cholesky(B))
    return B @ basis.combine(_solve(basis, B, inverse, basis.inner(around + C_bar))) @ B - around


def _solve(basis: Basis, weight: Tensor, inverse_weight: Tensor, rhs: Tensor) -> Tensor:
    if basis.size <= ASSEMBLED_HESSIAN:
        return solve_hessian(basis.hessian(weight), rhs)
    goal = torch.full((len(rhs),), 1e-12, dtype=rhs.dtype, device=rhs.device)
    return conjugate_gradients(
        lambda v: basis.hessian_product(weight, v), rhs, lambda v: basis.inverse_hessian_guess(inverse_weight, v), goal
    )


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2

"""B a Kronecker sum L ⊗ I + I ⊗ R: the linear precision family that needs only A's two marginals.

    S⊥ = {L ⊗ I_q + I_p ⊗ R : L (p x p), R (q x q) symmetric},   S = {C : both partial traces vanish}

With rows numbered i·q + j (row-major vec of a p x q matrix G), A = E[vec G vec Gᵀ] has the partial traces E[GGᵀ] and
E[GᵀG], and B⁻¹ must have the same ones. It shares the eigenvectors of L and R, so those are the eigenvectors of the
marginals and p + q numbers remain (``kronecker_sum``). Left out: sparsity in L and R.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet.bases import Basis, DenseBasis
from heliostat.linalg.logdet.kronecker_sum import kronecker_sum_from_marginals
from heliostat.linalg.logdet.subspaces.base import Subspace


class KroneckerSum(Subspace):
    """S⊥ = {L ⊗ I_q + I_p ⊗ R}; A has p·q rows.

    Limits: p = 1 or q = 1 gives B = A⁻¹. A itself a Kronecker sum's inverse gives C = 0.
    """

    def __init__(self, p: int, q: int) -> None:
        if p < 1 or q < 1:
            raise ValueError(f"a Kronecker sum needs two positive sizes, got p={p} and q={q}")
        self.p, self.q, self.n = int(p), int(q), int(p) * int(q)

    @property
    def dimension(self) -> int:
        return self.n * (self.n + 1) // 2 - self.codimension

    @property
    def codimension(self) -> int:
        return self.p * (self.p + 1) // 2 + self.q * (self.q + 1) // 2 - 1

    def partial_traces(self, matrix: Float[Tensor, "batch n n"]) -> tuple[Tensor, Tensor]:
        """(Σ_j A_(ij)(kj), Σ_i A_(ij)(ik)): E[GGᵀ] of shape (p, p) and E[GᵀG] of shape (q, q)."""
        tensor = matrix.reshape(-1, self.p, self.q, self.p, self.q)
        return torch.einsum("bijkj->bik", tensor), torch.einsum("bijil->bjl", tensor)

    def assemble(self, left: Float[Tensor, "batch p p"], right: Float[Tensor, "batch q q"]) -> Tensor:
        """L ⊗ I + I ⊗ R."""
        eye_p, eye_q = (torch.eye(size, dtype=left.dtype, device=left.device) for size in (self.p, self.q))
        out = torch.einsum("bik,jl->bijkl", left, eye_q) + torch.einsum("ik,bjl->bijkl", eye_p, right)
        return out.reshape(-1, self.n, self.n)

    def project_complement_stack(self, stack: Tensor) -> Tensor:
        left, right = self.partial_traces(stack)
        mean = stack.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        eye = torch.eye(self.p, dtype=stack.dtype, device=stack.device)
        return self.assemble(left / self.q - mean * eye, right / self.p)

    def project_stack(self, stack: Tensor) -> Tensor:
        return stack - self.project_complement_stack(stack)

    def closed_form(self, covariance: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"]:
        (left_values, left_vectors), (right_values, right_vectors) = (
            torch.linalg.eigh(marginal) for marginal in self.partial_traces(covariance)
        )
        solution = kronecker_sum_from_marginals(left_values, right_values, tolerance=float("inf"))
        left = left_vectors @ torch.diag_embed(solution.left) @ left_vectors.mT
        return self.assemble(left, right_vectors @ torch.diag_embed(solution.right) @ right_vectors.mT)

    def _make_complement_basis(self) -> Basis:
        """All of L, and R but for one diagonal entry, which would repeat the identity."""
        left, right = _symmetric_units(self.p), _symmetric_units(self.q)[1:]
        zero_left = torch.zeros(len(right), self.p, self.p, dtype=torch.float64)
        zero_right = torch.zeros(len(left), self.q, self.q, dtype=torch.float64)
        return DenseBasis(torch.cat([self.assemble(left, zero_right), self.assemble(zero_left, right)]))

    def _make_basis(self) -> Basis:
        from heliostat.linalg.logdet.subspaces.span import SpanOf

        return SpanOf(list(self.complement_basis.combine(torch.eye(self.codimension).double()))).complement_basis


def _symmetric_units(size: int) -> Tensor:
    rows, cols = torch.triu_indices(size, size)
    units = torch.zeros(len(rows), size, size, dtype=torch.float64)
    index = torch.arange(len(rows))
    units[index, rows, cols] = units[index, cols, rows] = 1.0
    return units

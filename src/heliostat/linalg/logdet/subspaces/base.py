"""Contract of a subspace with the decomposition A = B⁻¹ + C: always the home S of C, with B in its complement S⊥.

A ``Subspace`` knows both sides: bases, orthogonal projections, membership, and its closed form where one exists.
Objects whose natural description is of B (a sparsity pattern, a Kronecker sum) say so in their docstring and repr;
``ComplementOf`` swaps the two sides of any of them. Left out: solving anything (``newton``), and A itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from heliostat.linalg.arrays import as_tensor
from heliostat.linalg.logdet.bases import Basis


def symmetric_stack(matrix: Any, n: int) -> Tensor:
    """Symmetrise a numpy or torch matrix (or batch) as a float64 tensor (batch, n, n); ``ValueError`` on its shape."""
    tensor = as_tensor(matrix)
    if tensor.ndim < 2 or tuple(tensor.shape[-2:]) != (n, n):
        raise ValueError(f"this subspace holds {n} x {n} matrices, got an array of shape {tuple(tensor.shape)}")
    tensor = tensor.to(torch.float64).reshape(-1, n, n)
    return (tensor + tensor.mT) / 2


class Subspace(ABC):
    """A linear subspace S of the symmetric n x n matrices: C ∈ S, B ∈ S⊥, with ⟨X, Y⟩ = tr(XY)."""

    n: int
    rescales = False  # whether S is unchanged by D S D for every positive diagonal D

    @abstractmethod
    def _make_basis(self) -> Basis: ...

    @abstractmethod
    def _make_complement_basis(self) -> Basis: ...

    @property
    @abstractmethod
    def dimension(self) -> int:
        """The dimension of S, the number of free parameters of C."""

    @property
    def codimension(self) -> int:
        """The dimension of S⊥, the number of free parameters of B."""
        return self.n * (self.n + 1) // 2 - self.dimension

    @cached_property
    def basis(self) -> Basis:
        """A basis of S."""
        return self._make_basis()

    @cached_property
    def complement_basis(self) -> Basis:
        """A basis of S⊥."""
        return self._make_complement_basis()

    def closed_form(self, covariance: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"] | None:
        """Compute B without iterating over n-sized problems; ``None`` if this subspace (or this A) has no such form."""
        del covariance
        return None

    def touched(self) -> Int[Tensor, " touched"]:
        """Return the indices of rows that are nonzero in some member of S."""
        return torch.arange(self.n)

    def restricted(self, index: Int[Tensor, " touched"]) -> Subspace:
        """Restrict S to the matrices on ``index``; only called with ``touched()``."""
        raise NotImplementedError(f"{type(self).__name__} touches every row")

    def project(self, matrix: Any) -> Any:
        """Project orthogonally onto S, and return the caller's kind (numpy or torch). Limits: idempotent; 0 on S⊥."""
        return self._like(matrix, self.project_stack(symmetric_stack(matrix, self.n)))

    def project_complement(self, matrix: Any) -> Any:
        """Project orthogonally onto S⊥: ``symmetric part - project``."""
        return self._like(matrix, self.project_complement_stack(symmetric_stack(matrix, self.n)))

    def project_stack(self, stack: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"]:
        """Project symmetric float64 matrices onto S, through the smaller of the two bases."""
        if self.dimension <= self.codimension:
            return self.basis.project(stack) if self.dimension else torch.zeros_like(stack)
        return stack - self.complement_basis.project(stack)

    def project_complement_stack(self, stack: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"]:
        """Project symmetric float64 matrices onto S⊥."""
        if self.dimension <= self.codimension:
            return stack - self.project_stack(stack)
        return self.complement_basis.project(stack) if self.codimension else torch.zeros_like(stack)

    def contains(self, matrix: Any, tolerance: float = 1e-10) -> bool:
        """Return whether a matrix lies in S: ‖X - ΠX‖ ≤ tolerance ‖X‖, for every matrix of a batch."""
        stack = symmetric_stack(matrix, self.n)
        return _small(self.project_complement_stack(stack), stack, tolerance)

    def complement_contains(self, matrix: Any, tolerance: float = 1e-10) -> bool:
        """Return whether a matrix lies in S⊥, to the same relative tolerance."""
        stack = symmetric_stack(matrix, self.n)
        return _small(self.project_stack(stack), stack, tolerance)

    @staticmethod
    def _like(original: Any, stack: Tensor) -> Any:
        if isinstance(original, Tensor):
            return stack.reshape(original.shape).to(original.dtype)
        return stack.reshape(np.shape(original)).numpy()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.n}: C has {self.dimension} free parameters, B has {self.codimension})"


def _small(part: Tensor, whole: Tensor, tolerance: float) -> bool:
    scale = torch.linalg.matrix_norm(whole)
    return bool((torch.linalg.matrix_norm(part) <= tolerance * scale).all())


class ComplementOf(Subspace):
    """The complement of a subspace: C lies in ``subspace``'s S⊥, B in its S.

    ``ComplementOf(SpanOf(E))`` is the linear precision family B ∈ span E. Limits: twice is the identity.
    """

    def __init__(self, subspace: Subspace) -> None:
        if not isinstance(subspace, Subspace):
            raise ValueError(f"ComplementOf takes a Subspace such as SpanOf(matrices), got {type(subspace).__name__}")
        self.subspace, self.n, self.rescales = subspace, subspace.n, subspace.rescales

    @property
    def dimension(self) -> int:
        return self.subspace.codimension

    def _make_basis(self) -> Basis:
        return self.subspace.complement_basis

    def _make_complement_basis(self) -> Basis:
        return self.subspace.basis

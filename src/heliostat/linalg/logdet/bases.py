"""Bases of linear spaces of symmetric matrices, and the four products that Newton's method needs from one.

    combine(y)   = Σ y_k E_k                  inner(G)_k        = tr(G E_k)
    hessian(W)_kl = tr(W E_k W E_l)           hessian_product(W, v) = inner(W combine(v) W)

Three storages share that interface: single matrix entries, products U_k M_k U_kᵀ of few columns, and dense matrices.
Everything is batched over one leading axis and lives in float64. Left out: which space a basis spans, and for whom
(``base``); orthogonality, which nobody here needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

# Measured on one CPU thread: above the first row count a sparse direction beats a dense product, above the second it
# pays to compute only the wanted entries of W V W.
DENSE_PRODUCT_ROWS = 128
DENSE_SECOND_PRODUCT_ROWS = 400


class Basis(ABC):
    """Linearly independent symmetric matrices E_1..E_size of n rows."""

    n: int
    size: int

    @abstractmethod
    def combine(self, y: Float[Tensor, "batch size"]) -> Float[Tensor, "batch n n"]:
        """Σ_k y_k E_k."""

    @abstractmethod
    def inner(self, matrix: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch size"]:
        """tr(matrix E_k) for a symmetric matrix."""

    @abstractmethod
    def hessian(self, weight: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch size size"]:
        """tr(W E_k W E_l), the Hessian of -log det at the inverse of W."""

    def hessian_product(
        self, weight: Float[Tensor, "batch n n"], vector: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch size"]:
        """Return the Hessian times a vector without forming the Hessian."""
        return self.inner(weight @ self.combine(vector) @ weight)

    @cached_property
    def _gram_factor(self) -> Tensor:
        gram = self.hessian(torch.eye(self.n, dtype=torch.float64)[None])[0]
        return torch.as_tensor(torch.linalg.cholesky(gram))

    def solve_gram(self, y: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """G⁻¹ y with G_kl = tr(E_k E_l)."""
        return torch.cholesky_solve(y[..., None], self._gram_factor.to(y.device))[..., 0]

    def coordinates(self, matrix: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch size"]:
        """Coordinates of the orthogonal projection of a symmetric matrix onto the span."""
        return self.solve_gram(self.inner(matrix))

    def inverse_hessian_guess(
        self, inverse_weight: Float[Tensor, "batch n n"], vector: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch size"]:
        """G⁻¹ H(W⁻¹) G⁻¹ v: the inverse Hessian of the whole symmetric space, restricted; exact if that is the span."""
        return self.solve_gram(self.hessian_product(inverse_weight, self.solve_gram(vector)))

    def project(self, matrix: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"]:
        """Orthogonal projection of a symmetric matrix onto the span, in the trace inner product."""
        return self.combine(self.coordinates(matrix))


class _Index(NamedTuple):
    """Index tensors of a ``CoordinateBasis`` on one device."""

    rows: Tensor
    cols: Tensor
    weight: Tensor  # tr(E_k E_k): 1 on the diagonal, 2 off it
    flat: Tensor  # rows * n + cols
    mirrored: Tensor  # cols * n + rows


class CoordinateBasis(Basis):
    """Single entries: E_k = e_r e_cᵀ + e_c e_rᵀ off the diagonal, e_r e_rᵀ on it."""

    def __init__(self, n: int, rows: Int[Tensor, " size"], cols: Int[Tensor, " size"]) -> None:
        self.n, self.size = n, int(rows.shape[0])
        weight = torch.where(rows == cols, 1.0, 2.0).to(torch.float64)
        home = _Index(rows, cols, weight, rows * n + cols, cols * n + rows)
        self._on_device = {rows.device: home}

    @cached_property
    def _sorted_pairs(self) -> tuple[Tensor, Tensor]:
        """Both triangles in row-major order, as the sparse product wants them, and the element of each."""
        index = next(iter(self._on_device.values()))
        off = (index.rows != index.cols).nonzero()[:, 0]
        both = torch.cat([index.flat, index.mirrored[off]])
        source = torch.cat([torch.arange(self.size, device=off.device), off])
        order = torch.argsort(both)
        return torch.stack([both[order] // self.n, both[order] % self.n]), source[order]

    def _index(self, device: torch.device) -> _Index:
        if device not in self._on_device:
            home = next(iter(self._on_device.values()))
            self._on_device[device] = _Index(*(part.to(device) for part in home))
        return self._on_device[device]

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and the column of every element."""
        index = next(iter(self._on_device.values()))
        return index.rows.cpu().numpy(), index.cols.cpu().numpy()

    def combine(self, y: Tensor) -> Tensor:
        index = self._index(y.device)
        out = y.new_zeros(y.shape[0], self.n * self.n)
        out.index_copy_(1, index.flat, y)
        out.index_copy_(1, index.mirrored, y)
        return out.reshape(-1, self.n, self.n)

    def inner(self, matrix: Tensor) -> Tensor:
        return self.coordinates(matrix) * self._index(matrix.device).weight

    def coordinates(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(len(matrix), -1).index_select(1, self._index(matrix.device).flat)

    def solve_gram(self, y: Tensor) -> Tensor:
        return y / self._index(y.device).weight

    def hessian(self, weight: Tensor) -> Tensor:
        index = self._index(weight.device)
        of_rows, of_cols = weight.index_select(1, index.rows), weight.index_select(1, index.cols)
        out = of_rows.index_select(2, index.rows) * of_cols.index_select(2, index.cols)
        out.addcmul_(of_rows.index_select(2, index.cols), of_cols.index_select(2, index.rows))
        return out.mul_(index.weight[:, None] * (index.weight / 2))

    def hessian_product(self, weight: Tensor, vector: Tensor) -> Tensor:
        if self.n <= DENSE_PRODUCT_ROWS or len(weight) > 1 or self.size > self.n * self.n // 20:
            return super().hessian_product(weight, vector)
        index, matrix = self._index(weight.device), weight[0]
        pairs, source = (part.to(vector.device) for part in self._sorted_pairs)
        direction = torch.sparse_coo_tensor(
            pairs,
            vector[0, source],
            (self.n, self.n),
            is_coalesced=True,
            check_invariants=False,
        )
        half = (direction @ matrix).T  # W V, entry by entry of (W V) W below
        if self.n <= DENSE_SECOND_PRODUCT_ROWS:
            return self.inner((half @ matrix)[None])
        left, right = half.contiguous().index_select(0, index.rows), matrix.index_select(0, index.cols)
        return torch.bmm(left[:, None], right[:, :, None])[None, :, 0, 0] * index.weight


class FactoredBasis(Basis):
    """Few columns each: E_k = U_k M_k U_kᵀ with U_k of shape (n, rank)."""

    def __init__(self, columns: Float[Tensor, "size n rank"], core: Float[Tensor, "size rank rank"]) -> None:
        self.size, self.n, self.rank = (int(length) for length in columns.shape)
        self.columns = columns.to(torch.float64)
        self.core = core.to(torch.float64)

    def combine(self, y: Tensor) -> Tensor:
        columns, core = self.columns.to(y.device), self.core.to(y.device)
        scaled = torch.einsum("bk,kna,kac->bnkc", y, columns, core).flatten(2)
        out = scaled @ columns.transpose(0, 1).flatten(1).T
        return (out + out.mT) / 2

    def inner(self, matrix: Tensor) -> Tensor:
        columns, core = self.columns.to(matrix.device), self.core.to(matrix.device)
        applied = torch.einsum("bmn,kna->bkma", matrix, columns)
        return torch.einsum("bkma,kmc,kca->bk", applied, columns, core)

    def hessian(self, weight: Tensor) -> Tensor:
        columns, core = self.columns.to(weight.device), self.core.to(weight.device)
        flat = columns.transpose(0, 1).flatten(1)
        inner = (flat.T @ weight @ flat).reshape(-1, self.size, self.rank, self.size, self.rank)
        left = torch.einsum("kac,bkcld->bkald", core, inner)
        return torch.einsum("bkald,lde,bkale->bkl", left, core, inner)


class DenseBasis(Basis):
    """Any symmetric matrices, stored whole."""

    def __init__(self, matrices: Float[Tensor, "size n n"]) -> None:
        self.size, self.n = int(matrices.shape[0]), int(matrices.shape[-1])
        self.matrices = matrices.to(torch.float64)

    def combine(self, y: Tensor) -> Tensor:
        return torch.matmul(y, self.matrices.to(y.device).flatten(1)).reshape(-1, self.n, self.n)

    def inner(self, matrix: Tensor) -> Tensor:
        return torch.matmul(matrix.flatten(1), self.matrices.to(matrix.device).flatten(1).T)

    def hessian(self, weight: Tensor) -> Tensor:
        product = weight[:, None] @ self.matrices.to(weight.device)
        return torch.matmul(product.flatten(2), product.mT.flatten(2).mT)

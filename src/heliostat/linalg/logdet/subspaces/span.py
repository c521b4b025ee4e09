"""C in the span of given matrices: dense, scipy.sparse, or few-column factors.

    S = {Σ x_k D_k}.      ``ComplementOf(SpanOf(E))`` is B ∈ span E instead, Anderson's linear concentration model.

Left out: testing whether the decomposition exists (``existence``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from heliostat.linalg.arrays import as_tensor
from heliostat.linalg.logdet.bases import Basis, DenseBasis, FactoredBasis
from heliostat.linalg.logdet.subspaces.base import Subspace

ILL_CONDITIONED = 1e-3  # smallest eigenvalue of the normalised Gram matrix above which members are used as they come
DEPENDENT = 1e-12  # relative singular value below which a direction is rounding, not a member


@dataclass(frozen=True)
class LowRank:
    """The symmetric matrix U M Uᵀ with U of shape (n, rank) and M of shape (rank, rank); arrays or tensors."""

    columns: Any
    core: Any

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(U, M) in float64."""
        columns, core = (as_tensor(part) for part in (self.columns, self.core))
        if columns.ndim != 2 or tuple(core.shape) != (columns.shape[1], columns.shape[1]):
            raise ValueError(f"LowRank needs U (n, rank) and M (rank, rank), got {columns.shape} and {core.shape}")
        return columns, core


class SpanOf(Subspace):
    """S = the span of ``matrices``; linearly dependent members are allowed and counted once.

    Args:
        matrices: symmetric n x n arrays or tensors, scipy.sparse matrices, or ``LowRank`` factors, freely mixed. All
            sparse or factored members of few columns are never made dense.
        n: rows; only needed when ``matrices`` is empty.

    Raises:
        ValueError: different sizes, a member that is not symmetric or not finite, or nothing to tell n from.

    Limits: no members gives S = {0}, B = A⁻¹. Replacing members by an invertible combination changes nothing.
    """

    def __init__(self, matrices: Sequence[Any], n: int | None = None) -> None:
        members = [_read(matrix, index) for index, matrix in enumerate(matrices)]
        sizes = {columns.shape[0] for columns, _ in members} | ({n} if n is not None else set())
        if len(sizes) != 1:
            raise ValueError(f"the members of a span must agree on n and there must be one, got sizes {sorted(sizes)}")
        self.n = int(sizes.pop())
        self._kept = _independent([member for member in members if _squared_norm(*member) > 0], self.n)

    @property
    def dimension(self) -> int:
        return self._kept.size if self._kept is not None else 0

    def _make_basis(self) -> Basis:
        return self._kept if self._kept is not None else DenseBasis(torch.zeros(0, self.n, self.n))

    def _make_complement_basis(self) -> Basis:
        """Compute the null space of S in orthonormal coordinates; dense, for the case that it is the smaller side."""
        rows, cols = torch.triu_indices(self.n, self.n)
        scale = torch.where(rows == cols, 1.0, 2.0).to(torch.float64).sqrt()
        spanning = self.basis.combine(torch.eye(self.dimension, dtype=torch.float64))[:, rows, cols] * scale
        orthogonal = torch.linalg.qr(spanning.T, mode="complete").Q[:, self.dimension :].T / scale
        dense = torch.zeros(len(orthogonal), self.n, self.n, dtype=torch.float64)
        dense[:, rows, cols] = orthogonal
        dense[:, cols, rows] = orthogonal
        return DenseBasis(dense)

    def touched(self) -> Int[Tensor, " touched"]:
        basis = self.basis
        source = basis.columns if isinstance(basis, FactoredBasis) else basis.matrices  # type: ignore[attr-defined]
        return (source != 0).any(2).any(0).nonzero()[:, 0]

    def restricted(self, index: Int[Tensor, " touched"]) -> Subspace:
        out = SpanOf.__new__(SpanOf)
        out.n, basis = len(index), self.basis
        if isinstance(basis, FactoredBasis):
            out._kept = FactoredBasis(basis.columns[:, index], basis.core)
        elif isinstance(basis, DenseBasis):
            out._kept = DenseBasis(basis.matrices[:, index][:, :, index])
        return out


def _read(matrix: Any, index: int) -> tuple[Float[Tensor, "n rank"], Float[Tensor, "rank rank"]]:
    """One member as (U, M); a sparse one is supported on unit columns, a dense one is (I, itself)."""
    if isinstance(matrix, LowRank):
        columns, core = matrix.tensors()
    elif hasattr(matrix, "tocoo") and not isinstance(matrix, Tensor):
        entries = matrix.tocoo()
        support = np.unique(np.concatenate([entries.row, entries.col]))
        columns = torch.zeros(entries.shape[0], len(support), dtype=torch.float64)
        columns[support, np.arange(len(support))] = 1.0
        core = torch.as_tensor(matrix.tocsr()[support][:, support].toarray(), dtype=torch.float64)
    else:
        core = as_tensor(matrix).cpu()
        if core.ndim != 2 or core.shape[0] != core.shape[1]:
            raise ValueError(f"member {index} of the span must be a square matrix, got shape {tuple(core.shape)}")
        columns = torch.eye(core.shape[0], dtype=torch.float64)
    if not bool(torch.isfinite(core).all() and torch.isfinite(columns).all()):
        raise ValueError(f"member {index} of the span contains NaN or infinity")
    if bool((core - core.T).abs().max() > 1e-10 * core.abs().max()) if core.numel() else False:
        raise ValueError(f"member {index} of the span is not symmetric")
    return columns, (core + core.T) / 2


def _squared_norm(columns: Tensor, core: Tensor) -> float:
    """‖U M Uᵀ‖² through the small Gram matrix of the columns."""
    product = core @ (columns.T @ columns)
    return float((product * product.T).sum())


def _independent(members: list[tuple[Tensor, Tensor]], n: int) -> Basis | None:
    """Return a basis of the members' span: unchanged where they are safely independent, else orthonormalised."""
    if not members:
        return None
    rank = max(columns.shape[1] for columns, _ in members)
    basis: Basis
    if rank * 3 <= n:
        padded = [torch.nn.functional.pad(columns, (0, rank - columns.shape[1])) for columns, _ in members]
        cores = [torch.nn.functional.pad(core, (0, rank - len(core), 0, rank - len(core))) for _, core in members]
        basis = FactoredBasis(torch.stack(padded), torch.stack(cores))
    else:
        basis = DenseBasis(torch.stack([columns @ core @ columns.T for columns, core in members]))
    gram = basis.hessian(torch.eye(n, dtype=torch.float64)[None])[0]
    norms = gram.diagonal().sqrt()
    if float(torch.linalg.eigvalsh(gram / norms / norms[:, None])[0]) > ILL_CONDITIONED:
        return basis
    rows = torch.stack([(columns @ core @ columns.T).flatten() for columns, core in members]) / norms[:, None]
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    return DenseBasis(right[singular > DEPENDENT * singular[0]].unflatten(1, (n, n)))

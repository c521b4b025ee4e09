"""C constant on chosen blocks: the algebra of block-exchangeable matrices, solved in its r x r block parameters.

A matrix is block-exchangeable when within block r it has one diagonal value d_r and one off-diagonal value o_r, and
one value m_rs on every block pair. It is diagonal plus block-constant, M = diag(d_r - o_r) + Z K Zᵀ with Z the block
indicators, so that

    log det M = Σ_r (n_r - 1) log(d_r - o_r) + log det(diag(d - o) + N^½ K N^½),   K_rr = o_r, K_rs = m_rs.

If A is block-exchangeable, so are B and C, and Newton runs over at most r(r+1)/2 numbers whatever n is. Left out: A
that is not block-exchangeable (the general primal Newton takes it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.arrays import as_tensor
from heliostat.linalg.logdet.bases import Basis
from heliostat.linalg.logdet.newton import LogDet, minimize, solve_hessian
from heliostat.linalg.logdet.subspaces.base import Subspace
from heliostat.linalg.logdet.subspaces.span import LowRank, SpanOf

EXCHANGEABLE = 1e-12  # relative deviation from block constancy that still counts as rounding


class BlockExchangeable(Subspace):
    """S = {C : constant on each free block, zero elsewhere and on the diagonal}.

    Args:
        sizes: rows of each block.
        free: symmetric boolean (blocks, blocks): ``free[r, s]`` frees the block pair (r, s), ``free[r, r]`` the
            off-diagonal entries within block r (ignored for a block of one row). Default: everything free.

    Limits: one block per row is a sparsity pattern; ``free`` all false gives S = {0} and B = A⁻¹. For
    block-exchangeable A the answer equals that of the subspace in which every single entry of the free blocks is free.
    """

    def __init__(self, sizes: Sequence[int], free: Any = None) -> None:
        self.sizes = torch.as_tensor(list(sizes), dtype=torch.long)
        if self.sizes.ndim != 1 or not len(self.sizes) or int(self.sizes.min()) < 1:
            raise ValueError(f"block sizes must be positive, got {list(sizes)}")
        num_blocks = len(self.sizes)
        mask = torch.ones(num_blocks, num_blocks, dtype=torch.bool) if free is None else as_tensor(free, torch.bool)
        if tuple(mask.shape) != (num_blocks, num_blocks) or not bool((mask == mask.T).all()):
            raise ValueError(f"free must be a symmetric {num_blocks} x {num_blocks} boolean array")
        self.n = int(self.sizes.sum())
        self.block = torch.repeat_interleave(torch.arange(num_blocks), self.sizes)
        rows, cols = torch.triu_indices(num_blocks, num_blocks)
        usable = mask[rows, cols] & ((rows != cols) | (self.sizes[rows] > 1))
        self.pairs = rows[usable], cols[usable]

    @property
    def dimension(self) -> int:
        return len(self.pairs[0])

    def _make_basis(self) -> Basis:
        return self._span().basis

    def _make_complement_basis(self) -> Basis:
        return self._span().complement_basis

    def _span(self) -> SpanOf:
        indicator = torch.nn.functional.one_hot(self.block).to(torch.float64)
        members: list[Any] = []
        for row, col in zip(*(side.tolist() for side in self.pairs), strict=True):
            if row == col:
                members.append(torch.outer(indicator[:, row], indicator[:, row]) - torch.diag(indicator[:, row]))
            else:
                members.append(LowRank(indicator[:, [row, col]], [[0.0, 1.0], [1.0, 0.0]]))
        return SpanOf(members, n=self.n)

    def block_parameters(self, matrix: Float[Tensor, "batch n n"]) -> tuple[Tensor, Tensor] | None:
        """(d - o, K) per matrix if it is block-exchangeable to rounding, else ``None``."""
        indicator = torch.nn.functional.one_hot(self.block).to(matrix)
        sizes = self.sizes.to(matrix)
        sums, trace = indicator.T @ matrix @ indicator, matrix.diagonal(dim1=-2, dim2=-1) @ indicator
        inside = sums.diagonal(dim1=-2, dim2=-1) - trace
        counts = sizes[:, None] * sizes - torch.diag(sizes)
        level = (sums - torch.diag_embed(trace)) / counts.clamp(min=1)
        gap = trace / sizes - inside / (sizes * (sizes - 1)).clamp(min=1)
        deviation = (matrix - self.from_block_parameters(gap, level)).abs().amax((-2, -1))
        return (gap, level) if bool((deviation <= EXCHANGEABLE * matrix.abs().amax((-2, -1))).all()) else None

    def from_block_parameters(self, gap: Tensor, level: Tensor) -> Float[Tensor, "batch n n"]:
        """diag(gap) + Z level Zᵀ."""
        block = self.block.to(level.device)
        return level[:, block][:, :, block] + torch.diag_embed(gap[:, block])

    def closed_form(self, covariance: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"] | None:
        parameters = self.block_parameters(covariance)
        if parameters is None or not self.dimension:
            return None
        reduced = _BlockProblem(self, *parameters)
        start = covariance.new_zeros(len(covariance), self.dimension)
        x = minimize(reduced, start, reduced.newton_direction).x
        gap, core = reduced.shifted(x)
        root = self.sizes.to(gap).sqrt()
        inner = torch.linalg.inv(core) - torch.diag_embed(1 / gap)
        return self.from_block_parameters(1 / gap, inner / root / root[:, None])


class _BlockProblem:
    """-log det(A - C) in the block parameters of C: two spectral parts, one of them with multiplicities n_r - 1."""

    def __init__(self, space: BlockExchangeable, gap: Tensor, level: Tensor) -> None:
        self.space, self.gap, self.level = space, gap, level
        self.sizes = space.sizes.to(gap)
        rows, cols = (side.to(gap.device) for side in space.pairs)
        num_blocks, root = len(self.sizes), self.sizes.sqrt()
        self.gap_change = gap.new_zeros(space.dimension, num_blocks)  # d(gap)/dx, with M = A - C
        within = (rows == cols).nonzero()[:, 0]
        self.gap_change[within, rows[within]] = 1.0
        change = gap.new_zeros(space.dimension, num_blocks, num_blocks)
        index = torch.arange(space.dimension, device=gap.device)
        change[index, rows, cols] = change[index, cols, rows] = -root[rows] * root[cols]
        self.core_change = change + torch.diag_embed(self.gap_change)

    def shifted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(d - o, r x r core) of A - C(x)."""
        root = self.sizes.sqrt()
        core = self.level * root * root[:, None] + torch.diag_embed(self.gap)
        return self.gap + x @ self.gap_change, core + torch.einsum("bk,krs->brs", x, self.core_change)

    def evaluate(self, x: Tensor) -> LogDet:
        gap, core = self.shifted(x)
        factor, info = torch.linalg.cholesky_ex(core)
        repeated = self.sizes > 1
        feasible = (info == 0) & ((gap > 0) | ~repeated).all(-1)
        logs = torch.where(repeated, gap.clamp(min=1e-300).log(), 0.0)
        value = -(logs @ (self.sizes - 1)) - 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return LogDet(x, torch.where(feasible, value, torch.inf), factor)

    def gradient(self, point: LogDet) -> Tensor:
        gap, _ = self.shifted(point.x)
        inverse = torch.cholesky_inverse(point.factor)
        return -((self.sizes - 1) / gap) @ self.gap_change.T - torch.einsum("brs,krs->bk", inverse, self.core_change)

    def newton_direction(self, point: LogDet, gradient: Tensor, forcing: Tensor) -> Tensor:
        del forcing
        gap, _ = self.shifted(point.x)
        curvature = (self.gap_change * ((self.sizes - 1) / gap**2)[:, None]) @ self.gap_change.T
        product = torch.cholesky_inverse(point.factor)[:, None] @ self.core_change
        curvature = curvature + product.flatten(2) @ product.mT.flatten(2).mT
        return -solve_hessian(curvature, gradient)

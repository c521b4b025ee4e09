"""Chordal patterns on scipy.sparse matrices: closed form and selected inversion, clique by clique, no dense matrix.

Values live in one array over the pattern's entries (diagonal first, then edges i < j). Cliques of equal shape are
solved together. The inverse of B on the pattern comes from two sweeps over the levels of the clique tree, towards the
root to factorise B = Σ_c K_c D_c K_cᵀ and back for Σ_rs = Ψᵀ Σ_ss, Σ_rr = D⁻¹ + Ψᵀ Σ_ss Ψ; a sweep costs one batch of
vector operations per level and shape, so a tree as deep as it is large belongs on the banded path. Left out:
non-chordal patterns (``embedding``).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from heliostat.linalg.logdet.sparse.forms import FloatArray, require_scipy
from heliostat.linalg.logdet.subspaces.chordal import CliqueGroup
from heliostat.linalg.logdet.subspaces.pattern import IntArray, SparsityPattern


class Blocks(NamedTuple):
    """Positions in storage of the blocks of equally shaped cliques c = separator ∪ residual."""

    rr: IntArray  # (cliques, residual, residual)
    sr: IntArray  # (cliques, separator, residual)
    ss: IntArray  # (cliques, separator, separator)


class PatternEntries:
    """Positions of (i, j) pairs in an array over a chordal pattern's entries."""

    def __init__(self, pattern: SparsityPattern) -> None:
        self.n = pattern.n
        rows, cols = pattern.edges
        self.rows = np.concatenate([np.arange(self.n), rows])
        self.cols = np.concatenate([np.arange(self.n), cols])
        self.edge_keys = rows * self.n + cols
        self.groups = pattern.clique_groups or []
        self.blocks = [self._locate(group) for group in self.groups]

    def _locate(self, group: CliqueGroup) -> Blocks:
        s, r = group.separators, group.residuals
        pairs = ((r, r), (s, r), (s, s))
        return Blocks(*(self.positions(left[:, :, None], right[:, None, :]) for left, right in pairs))

    def positions(self, rows: IntArray, cols: IntArray) -> IntArray:
        """Return the positions in storage of entries (rows, cols), all on the pattern."""
        low, high = np.minimum(rows, cols), np.maximum(rows, cols)
        return np.where(low == high, low, self.n + np.searchsorted(self.edge_keys, low * self.n + high))

    def read(self, matrix: Any) -> tuple[Float[np.ndarray, " entries"], IntArray]:
        """Values of a scipy.sparse matrix on the pattern, and which entries it does not store."""
        stored = require_scipy().sparse.csc_array(matrix)
        stored.sum_duplicates()
        cols = np.repeat(np.arange(self.n), np.diff(stored.indptr))
        keys = cols * self.n + stored.indices
        wanted = self.cols * self.n + self.rows
        place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = keys[place] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
        values = np.where(found, stored.data[place] if len(keys) else 0.0, 0.0)
        return values, np.flatnonzero(~found)

    def write(self, values: Float[np.ndarray, " entries"], keep: IntArray | None = None) -> Any:
        """Return a symmetric scipy.sparse CSC array from values on the pattern (or on part of it)."""
        rows, cols = self.rows, self.cols
        if keep is not None:
            rows, cols, values = rows[keep], cols[keep], values[keep]
        off = rows != cols
        data = np.concatenate([values, values[off]])
        pairs = np.concatenate([rows, cols[off]]), np.concatenate([cols, rows[off]])
        return require_scipy().sparse.csc_array((data, pairs), shape=(self.n, self.n))

    @cached_property
    def levels(self) -> list[list[Blocks]]:
        """The cliques' blocks by depth in the clique tree, roots first."""
        residuals = [group.residuals for group in self.groups]
        offsets = np.cumsum([0, *map(len, residuals)])
        owner = np.empty(self.n, dtype=np.int64)
        for rows, offset in zip(residuals, offsets, strict=False):
            owner[rows] = offset + np.arange(len(rows))[:, None]
        rank = np.concatenate([group.rank for group in self.groups])
        root = len(rank)
        parent = np.full(root + 1, root)
        for group, offset in zip(self.groups, offsets, strict=False):
            if group.separators.shape[1]:
                owners = owner[group.separators]
                latest = rank[owners].argmax(1)
                parent[offset : offset + len(owners)] = owners[np.arange(len(owners)), latest]
        depth = _depths(parent)
        out: list[list[Blocks]] = [[] for _ in range(int(depth.max()))]
        for blocks, start, stop in zip(self.blocks, offsets, offsets[1:], strict=False):
            own = depth[start:stop]
            order = np.argsort(own, kind="stable")
            for part in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
                out[int(own[part[0]]) - 1].append(Blocks(*(positions[part] for positions in blocks)))
        return out


def _depths(parent: IntArray) -> IntArray:
    """Distance to the artificial root (last index, its own parent) by pointer doubling."""
    jump, distance = parent.copy(), np.ones(len(parent), dtype=np.int64)
    distance[-1] = 0
    while (jump != len(parent) - 1).any():
        distance = distance + distance[jump]
        jump = jump[jump]
    return distance


def closed_form(entries: PatternEntries, values: FloatArray) -> tuple[Float[np.ndarray, " entries"], float]:
    """B on the pattern from A on the pattern, and log det B.

    Raises:
        np.linalg.LinAlgError: some clique of A is not positive definite.
    """
    out = np.zeros_like(values)
    log_det = 0.0
    for blocks in entries.blocks:
        remaining: FloatArray = values[blocks.rr]
        weights: FloatArray = values[blocks.sr]
        if blocks.ss.size:
            np.linalg.cholesky(values[blocks.ss])
            weights = np.linalg.solve(values[blocks.ss], weights)
            remaining = remaining - values[blocks.sr].swapaxes(1, 2) @ weights
        log_det -= 2 * np.log(np.linalg.cholesky(remaining).diagonal(0, 1, 2)).sum()
        pivots = np.linalg.inv(remaining)
        _add(out, blocks.rr, pivots)
        _add(out, blocks.sr, -weights @ pivots, across=True)
        _add(out, blocks.ss, weights @ pivots @ weights.swapaxes(1, 2))
    return out, float(log_det)


def _add(out: FloatArray, positions: IntArray, blocks: FloatArray, across: bool = False) -> None:
    """Add blocks into symmetric storage: an entry off the diagonal of a square block is met twice, and counted once."""
    if not positions.size:
        return
    if not across:
        lower = np.tril(np.ones(blocks.shape[-2:], dtype=bool))
        positions, blocks = positions[:, lower], blocks[:, lower]
    out += np.bincount(positions.ravel(), blocks.ravel(), minlength=len(out))


def inverse_on_pattern(
    entries: PatternEntries, values: FloatArray
) -> tuple[Float[np.ndarray, " entries"], float] | None:
    """B⁻¹ on the pattern and log det B, from B on the pattern; ``None`` where B is not positive definite."""
    work, log_det = values.copy(), 0.0
    kept: list[list[tuple[Blocks, FloatArray, FloatArray]]] = []
    for level in reversed(entries.levels):
        kept.append([])
        for blocks in level:
            pivots = work[blocks.rr]
            try:
                log_det += 2 * np.log(np.linalg.cholesky(pivots).diagonal(0, 1, 2)).sum()
            except np.linalg.LinAlgError:
                return None
            variances = np.linalg.inv(pivots)
            weights = -work[blocks.sr] @ variances
            _add(work, blocks.ss, -weights @ pivots @ weights.swapaxes(1, 2))
            kept[-1].append((blocks, variances, weights))
    inverse = np.zeros_like(values)
    for part in reversed(kept):
        for blocks, variances, weights in part:
            across = inverse[blocks.ss] @ weights
            inverse[blocks.sr] = across
            inverse[blocks.rr] = variances + weights.swapaxes(1, 2) @ across
    return inverse, float(log_det)

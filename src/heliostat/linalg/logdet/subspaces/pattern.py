"""B on a sparsity pattern: covariance selection, with the closed form of every chordal graph.

    S⊥ = {B symmetric : B_ij = 0 unless i = j or {i, j} is an edge},     S = {C : C = 0 on the pattern}

So A and B⁻¹ agree on the pattern, and B⁻¹ is the maximum-determinant completion of A's entries there. For a chordal
graph with cliques c and separators s, B = Σ_c [A_cc⁻¹] - Σ_s [A_ss⁻¹], zero-padded; here each clique is added together
with its separator as one positive semidefinite term, which loses no digits to cancellation. Left out: matrices that
are stored sparse (``sparse``), and non-chordal graphs (``newton``).

References:
    A. P. Dempster (1972), Covariance Selection, Biometrics 28, 157. R. Grone, C. R. Johnson, E. M. Sá, H. Wolkowicz
    (1984), Linear Algebra Appl. 58, 109. S. L. Lauritzen (1996), Graphical Models, section 5.3. Theirs is the
    mathematics; their texts were not at hand: reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from heliostat.arguments import listed
from heliostat.linalg.logdet.bases import Basis, CoordinateBasis
from heliostat.linalg.logdet.subspaces import chordal
from heliostat.linalg.logdet.subspaces.base import Subspace

IntArray = NDArray[np.int64]


class SparsityPattern(Subspace):
    """S⊥ = symmetric matrices supported on the diagonal and the given edges; C is zero there.

    Args:
        n: rows.
        edges: pairs (i, j), i ≠ j, any order, repeats allowed; the diagonal always belongs to the pattern.

    Limits: no edges gives B = diag(1/A_ii); all edges give B = A⁻¹ and C = 0.
    """

    rescales = True

    def __init__(self, n: int, edges: Any = ()) -> None:
        if n < 1:
            raise ValueError(f"a pattern needs at least one row, got n={n}")
        self.n = int(n)
        pairs = np.asarray(listed(edges))
        if pairs.size and not np.issubdtype(pairs.dtype, np.integer):
            raise ValueError(f"edges are pairs of row numbers, got an array of dtype {pairs.dtype}")
        pairs = pairs.reshape(-1, 2).astype(np.int64) if pairs.size else np.zeros((0, 2), np.int64)
        if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
            raise ValueError(f"edges name rows {pairs.min()}..{pairs.max()}, but the pattern has rows 0..{n - 1}")
        low, high = pairs.min(1), pairs.max(1)
        keys = np.unique(low[low != high] * self.n + high[low != high])
        self._edges = keys // self.n, keys % self.n

    @classmethod
    def diagonal(cls, n: int) -> SparsityPattern:
        """Make B diagonal: B = diag(1/A_ii)."""
        return cls(n)

    @classmethod
    def full(cls, n: int) -> SparsityPattern:
        """Leave B unrestricted: B = A⁻¹, C = 0."""
        return cls.block_diagonal([n])

    @classmethod
    def banded(cls, n: int, bandwidth: int) -> BandedPattern:
        """Make B banded: B_ij = 0 for |i - j| > bandwidth."""
        return BandedPattern(n, bandwidth)

    @classmethod
    def tree(cls, parents: Sequence[int] | IntArray) -> TreePattern:
        """Return a forest: ``parents[i]`` is the parent of i, or -1 for a root."""
        return TreePattern(parents)

    @classmethod
    def block_diagonal(cls, sizes: Sequence[int]) -> SparsityPattern:
        """Make B block-diagonal with dense blocks of the given sizes: B_bb = A_bb⁻¹."""
        sizes = listed(sizes)
        if not len(sizes) or min(sizes) < 1:
            raise ValueError(f"block sizes must be positive, got {list(sizes)}")
        starts = np.cumsum([0, *sizes])
        edges = [np.stack(np.triu_indices(size, 1), 1) + start for size, start in zip(sizes, starts, strict=False)]
        return cls(int(starts[-1]), np.concatenate(edges))

    @classmethod
    def from_mask(cls, mask: Any) -> SparsityPattern:
        """Read a square array: an edge wherever entry (i, j) or (j, i) is nonzero."""
        array = np.asarray(mask)
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise ValueError(f"a pattern mask is square, got shape {array.shape}")
        return cls(array.shape[0], np.argwhere(array != 0))

    @classmethod
    def from_sparse(cls, matrix: Any) -> SparsityPattern:
        """Read any scipy.sparse matrix: an edge for every stored off-diagonal entry."""
        coordinates = matrix.tocoo()
        if coordinates.shape[0] != coordinates.shape[1]:
            raise ValueError(f"a pattern matrix is square, got shape {coordinates.shape}")
        return cls(coordinates.shape[0], np.stack([coordinates.row, coordinates.col], 1).astype(np.int64))

    @classmethod
    def from_graph(cls, graph: Any) -> SparsityPattern:
        """Read a networkx graph; rows follow ``graph.nodes`` order."""
        row = {node: index for index, node in enumerate(graph.nodes)}
        return cls(len(row), [(row[left], row[right]) for left, right in graph.edges])

    @property
    def edges(self) -> tuple[IntArray, IntArray]:
        """Off-diagonal pairs i < j of the pattern, as two index arrays sorted by (i, j)."""
        return self._edges

    @property
    def num_edges(self) -> int:
        return len(self.edges[0])

    @property
    def dimension(self) -> int:
        return self.n * (self.n - 1) // 2 - self.num_edges

    @cached_property
    def neighbours(self) -> chordal.Adjacency:
        """Neighbour lists."""
        return chordal.adjacency(self.n, *self.edges)

    @cached_property
    def clique_groups(self) -> list[chordal.CliqueGroup] | None:
        """Cliques with separators, grouped by shape; ``None`` where the graph is not chordal."""
        return chordal.cliques(self.neighbours)

    @property
    def is_chordal(self) -> bool:
        """Whether every cycle of four or more has a chord, and hence B a closed form."""
        return self.clique_groups is not None

    def without_bridged_parts(self, present: NDArray[np.bool_]) -> SparsityPattern:
        """Return the pattern without edges between parts that the ``present`` edges leave unconnected."""
        part = chordal.components(self.n, self.edges[0][present], self.edges[1][present])
        inside = part[self.edges[0]] == part[self.edges[1]]
        return SparsityPattern(self.n, np.stack(self.edges, 1)[inside])

    def closed_form(self, covariance: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"] | None:
        groups = self.clique_groups
        if groups is None:
            return None
        out = torch.zeros_like(covariance, memory_format=torch.contiguous_format)
        for group in groups:
            _add_cliques(out, covariance, group)
        return out

    def _make_complement_basis(self) -> Basis:
        rows, cols = (torch.from_numpy(side) for side in self.edges)
        diagonal = torch.arange(self.n)
        return CoordinateBasis(self.n, torch.cat([diagonal, rows]), torch.cat([diagonal, cols]))

    def _make_basis(self) -> Basis:
        free = np.triu(np.ones((self.n, self.n), dtype=bool), 1)
        free[self.edges] = False
        rows, cols = np.nonzero(free)
        return CoordinateBasis(self.n, torch.from_numpy(rows), torch.from_numpy(cols))

    def touched(self) -> Int[Tensor, " touched"]:
        degree = np.bincount(np.concatenate(self.edges), minlength=self.n)
        return torch.from_numpy(np.flatnonzero(degree < self.n - 1))

    def restricted(self, index: Int[Tensor, " touched"]) -> Subspace:
        place = np.full(self.n, -1)
        place[index.numpy()] = np.arange(len(index))
        rows, cols = place[self.edges[0]], place[self.edges[1]]
        kept = (rows >= 0) & (cols >= 0)
        return SparsityPattern(len(index), np.stack([rows[kept], cols[kept]], 1))


class BandedPattern(SparsityPattern):
    """B_ij = 0 for |i - j| > bandwidth; edges are listed only when something dense asks for them.

    Limits: bandwidth 0 is ``diagonal``, bandwidth n - 1 is ``full``.
    """

    def __init__(self, n: int, bandwidth: int) -> None:
        if n < 1 or not 0 <= bandwidth < n:
            raise ValueError(f"a banded pattern needs 0 <= bandwidth < n, got bandwidth={bandwidth} and n={n}")
        self.n, self.bandwidth = int(n), int(bandwidth)

    @cached_property
    def _listed(self) -> tuple[IntArray, IntArray]:
        rows = np.repeat(np.arange(self.n), self.bandwidth)
        cols = rows + np.tile(np.arange(1, self.bandwidth + 1), self.n)
        return rows[cols < self.n], cols[cols < self.n]

    @property
    def edges(self) -> tuple[IntArray, IntArray]:
        return self._listed

    @property
    def num_edges(self) -> int:
        return self.bandwidth * self.n - self.bandwidth * (self.bandwidth + 1) // 2

    @cached_property
    def clique_groups(self) -> list[chordal.CliqueGroup]:
        band, n = self.bandwidth, self.n
        first = chordal.CliqueGroup(np.zeros((1, 0), np.int64), np.arange(band + 1)[None], np.zeros(1, np.int64))
        starts = np.arange(1, n - band)
        rest = chordal.CliqueGroup(starts[:, None] + np.arange(band), starts[:, None] + band, starts)
        return [first, rest] if len(starts) else [first]


class TreePattern(SparsityPattern):
    """B on a forest given by parent indices; the Chow–Liu family when the tree is the maximum spanning tree.

    Limits: all roots is ``diagonal``; ``parents = [-1, 0, 1, ...]`` is ``banded`` with bandwidth 1.
    """

    def __init__(self, parents: Sequence[int] | IntArray) -> None:
        self.parents = np.asarray(listed(parents), dtype=np.int64)
        if self.parents.ndim != 1 or not len(self.parents):
            raise ValueError(f"parents is one list of row numbers, got shape {self.parents.shape}")
        children = np.flatnonzero(self.parents >= 0)
        super().__init__(len(self.parents), np.stack([children, self.parents[children]], 1))
        self._refuse_cycles()

    def _refuse_cycles(self) -> None:
        """Pointer doubling: after log2(n) jumps every row of a forest stands at the artificial root n."""
        jump = np.append(np.where(self.parents < 0, self.n, self.parents), self.n)
        for _ in range(max(1, int(np.ceil(np.log2(self.n + 1))))):
            jump = jump[jump]
        if (jump != self.n).any():
            raise ValueError(f"parents contain a cycle through row {int(np.flatnonzero(jump != self.n)[0])}")

    @cached_property
    def clique_groups(self) -> list[chordal.CliqueGroup]:
        roots, children = np.flatnonzero(self.parents < 0), np.flatnonzero(self.parents >= 0)
        groups = [chordal.CliqueGroup(np.zeros((len(roots), 0), np.int64), roots[:, None], roots)]
        if len(children):
            groups.append(chordal.CliqueGroup(self.parents[children][:, None], children[:, None], children))
        return groups


def _add_cliques(out: Tensor, covariance: Tensor, group: chordal.CliqueGroup) -> None:
    """Add [A_cc⁻¹] - [A_ss⁻¹] = K D Kᵀ per clique c = s ∪ r: K = [-A_ss⁻¹A_sr; I], D = (A_rr - A_rs A_ss⁻¹ A_sr)⁻¹."""
    separator = torch.from_numpy(group.separators).to(covariance.device)
    residual = torch.from_numpy(group.residuals).to(covariance.device)
    remaining = covariance[:, residual[:, :, None], residual[:, None, :]]
    size = int(residual.shape[1])
    stretch = torch.eye(size, dtype=covariance.dtype, device=covariance.device).expand(*remaining.shape)
    if separator.shape[1]:
        inside = covariance[:, separator[:, :, None], separator[:, None, :]]
        across = covariance[:, separator[:, :, None], residual[:, None, :]]
        weights = torch.cholesky_solve(across, torch.linalg.cholesky(inside))
        remaining = remaining - across.mT @ weights
        stretch = torch.cat([-weights, stretch], -2)
    term = stretch @ torch.cholesky_inverse(torch.linalg.cholesky((remaining + remaining.mT) / 2)) @ stretch.mT
    clique = torch.cat([separator, residual], 1)
    target = (clique[:, :, None] * out.shape[-1] + clique[:, None, :]).reshape(-1)
    out.view(out.shape[0], -1).index_add_(1, target, ((term + term.mT) / 2).reshape(out.shape[0], -1))

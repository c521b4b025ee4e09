"""Non-chordal sparse patterns: Newton over the fill of a chordal embedding, with every step a sparse factorisation.

Add edges F to the pattern E until it is chordal. For given entries X of A - C on E ∪ F the best completion has the
closed form, so only C's entries on F are left:

    minimise φ(X_F) = -Σ_c log det X_cc + Σ_s log det X_ss,     ∂φ/∂X_ij = -2 B_ij,

and at the minimum B vanishes on F. φ is a partial minimum of -log det(A - C), hence convex and self-concordant; A's
own entries are a feasible start. The Hessian couples fill entries that share a clique and is solved by scipy's
SuperLU; sparse Cholesky libraries were not an option: scikit-sparse ships no wheel, and CVXOPT's CHOLMOD is GPL. A
square grid of 44 rows couples 1.4e8 times by minimum degree and 2.3e8 times by nested dissection, while B has 5,720
parameters: such patterns go to dense Newton over B up to ``MOST_DENSE_ROWS``. Left out: larger ones (refused with the
count).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet.newton import LogDet, minimize
from heliostat.linalg.logdet.sparse.chordal import PatternEntries, closed_form
from heliostat.linalg.logdet.sparse.forms import FloatArray, require_scipy
from heliostat.linalg.logdet.subspaces import chordal
from heliostat.linalg.logdet.subspaces.pattern import IntArray, SparsityPattern

MOST_HESSIAN_ENTRIES = 30_000_000  # about 1 GB while it is assembled
MOST_DENSE_ROWS = 3_000  # up to which more couplings than that are left to dense Newton


class Embedding:
    """A chordal pattern around ``pattern`` and which of its entries are fill."""

    def __init__(self, pattern: SparsityPattern) -> None:
        fill = chordal.minimum_degree_fill(pattern.neighbours)
        own = np.stack(pattern.edges, 1)
        whole = np.concatenate([own, np.asarray(fill, dtype=np.int64).reshape(-1, 2)])
        self.entries = PatternEntries(SparsityPattern(pattern.n, whole))
        kept = np.isin(self.entries.edge_keys, pattern.edges[0] * pattern.n + pattern.edges[1])
        is_fill = np.concatenate([np.zeros(pattern.n, dtype=bool), ~kept])
        self.fill, self.own = np.flatnonzero(is_fill), np.flatnonzero(~is_fill)
        self.coupled = [_coupled_pairs(self.entries, group, is_fill) for group in self.entries.groups]
        count = sum(len(pair[0]) ** 2 * 2 for cliques in self.coupled for pair in cliques)
        self.is_dense = count > MOST_HESSIAN_ENTRIES
        if self.is_dense and pattern.n > MOST_DENSE_ROWS:
            raise ValueError(
                f"this pattern is too far from chordal for the sparse path: {len(self.fill)} fill entries would couple "
                f"in {count} pairs, and {pattern.n} rows are too many for a dense one ({MOST_DENSE_ROWS})"
            )


def _coupled_pairs(entries: PatternEntries, group: chordal.CliqueGroup, is_fill: Any) -> list[tuple[IntArray, ...]]:
    """Per clique, and per separator with a minus sign: fill positions, their local rows and columns, members, sign."""
    out: list[tuple[IntArray, ...]] = []
    cliques = np.concatenate([group.separators, group.residuals], 1)
    for members, sign in ((cliques, 1), (group.separators, -1)):
        left, right = np.triu_indices(members.shape[1], 1)
        positions = entries.positions(members[:, left], members[:, right])
        for member, place in zip(members, positions, strict=True):
            chosen = np.flatnonzero(is_fill[place])
            if len(chosen):
                out.append((place[chosen], left[chosen], right[chosen], member, np.asarray(sign)))
    return out


class _FillProblem:
    """φ over the fill entries of X, in the protocol of ``newton.minimize``."""

    def __init__(self, embedding: Embedding, values: FloatArray) -> None:
        self.embedding, self.values = embedding, values
        self.slot = np.full(len(values), -1)
        self.slot[embedding.fill] = np.arange(len(embedding.fill))

    def completed(self, x: Tensor) -> FloatArray:
        values = self.values.copy()
        values[self.embedding.fill] = x[0].numpy()
        return values

    def evaluate(self, x: Tensor) -> LogDet:
        try:
            precision, log_det = closed_form(self.embedding.entries, self.completed(x))
        except np.linalg.LinAlgError:
            precision, log_det = np.zeros_like(self.values), np.inf
        return LogDet(x, torch.tensor([log_det], dtype=torch.float64), torch.from_numpy(precision)[None])

    def gradient(self, point: LogDet) -> Tensor:
        return -2 * point.factor[:, self.embedding.fill]

    def direction(self, point: LogDet, gradient: Tensor, forcing: Tensor) -> Tensor:
        del forcing
        scipy, size = require_scipy(), len(self.embedding.fill)
        values = self.completed(point.x)
        rows, cols, data = [], [], []
        for place, left, right, members, sign in (pair for group in self.embedding.coupled for pair in group):
            block = values[self.embedding.entries.positions(members[:, None], members[None])]
            inverse = np.linalg.inv(block)
            of_left, of_right = inverse[left], inverse[right]
            local = of_left[:, left] * of_right[:, right] + of_left[:, right] * of_right[:, left]
            slots = self.slot[place]
            rows.append(np.repeat(slots, len(slots)))
            cols.append(np.tile(slots, len(slots)))
            data.append((2 * sign * local).ravel())
        pairs = np.concatenate(rows), np.concatenate(cols)
        hessian = scipy.sparse.csc_array((np.concatenate(data), pairs), shape=(size, size))
        solver = scipy.sparse.linalg.splu(hessian, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        return torch.from_numpy(-solver.solve(gradient[0].numpy()))[None]


def solve(
    embedding: Embedding, values: Float[np.ndarray, " entries"], max_steps: int
) -> tuple[Float[np.ndarray, " entries"], int]:
    """B on the embedding (rounding-sized on the fill) from A there, and the Newton steps taken."""
    problem = _FillProblem(embedding, values)
    start = torch.from_numpy(values[embedding.fill])[None]
    found = minimize(problem, start, problem.direction, max_steps)
    return found.point.factor[0].numpy(), found.num_steps

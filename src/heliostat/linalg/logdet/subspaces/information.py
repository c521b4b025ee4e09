"""Information of a trader as a subspace: the information sets of exponential-utility hedging.

With Gaussian increments X ~ N(0, Σ) and A = Σ⁻¹, the holding of trade i may be any function of the linear statistics
h·X, h ∈ H_i. The matrix form γ = UX of linear strategies gives C = -(U + Uᵀ) in

    S = span{e_i hᵀ + h e_iᵀ : h ∈ H_i},

which contains no positive semidefinite direction as long as no H_i looks at X_i itself. The certainty equivalent is
½(log det Σ - log det B) = KL(N(0,B) ‖ N(0,Σ)). Left out: prices, paths and Monte Carlo (studies/finance).

References:
    Y. Dolinsky, O. Zuk (2026), arXiv 2601.18662; Y. Dolinsky, O. Zuk (2023), arXiv 2305.18136 (delay).
    Only abstract, introduction and repositories were at hand: reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heliostat.linalg.logdet.subspaces.base import Subspace
from heliostat.linalg.logdet.subspaces.pattern import SparsityPattern
from heliostat.linalg.logdet.subspaces.span import LowRank, SpanOf


def full_information(n: int) -> SparsityPattern:
    """Let trade i see all increments before i: S = all off-diagonals, B = diag(1/A_ii)."""
    return SparsityPattern.diagonal(n)


def delayed_information(n: int, delay: int) -> SparsityPattern:
    """Let trade i see increments older than ``delay``: S = {|i - j| > delay}, B banded. Limit: delay 0 is full."""
    return SparsityPattern.banded(n, delay)


def markov_information(n: int) -> Subspace:
    """Let trade i see only the current level Σ_{r<i} X_r."""
    return linear_information(n, {i: [(np.arange(n) < i).astype(float)] for i in range(1, n)})


def linear_information(n: int, statistics: Mapping[int, Sequence[Any]]) -> Subspace:
    """Let trade i see the linear statistics ``statistics[i]``, each a vector of n weights; absent trades do not trade.

    Raises:
        ValueError: a statistic of the wrong length, or one that looks at the increment it trades on.

    Limits: all unit vectors is a sparsity pattern; one cumulative vector per trade is ``markov_information``.
    """
    members: list[LowRank] = []
    seen: list[tuple[int, int]] = []
    for trade, vectors in statistics.items():
        for vector in vectors:
            weights = np.asarray(vector, dtype=np.float64)
            if weights.shape != (n,):
                raise ValueError(f"a statistic of trade {trade} has shape {weights.shape}, expected ({n},)")
            if weights[trade] != 0:
                raise ValueError(f"trade {trade} would look at its own increment: weight {weights[trade]} at {trade}")
            unit = np.zeros(n)
            unit[trade] = 1.0
            members.append(LowRank(np.stack([unit, weights], 1), [[0.0, 1.0], [1.0, 0.0]]))
            support = np.flatnonzero(weights)
            seen.extend([(trade, int(support[0]))] if len(support) == 1 else [])
    if len(seen) == len(members):
        allowed = np.ones((n, n), dtype=bool)
        for trade, other in seen:
            allowed[trade, other] = allowed[other, trade] = False
        return SparsityPattern.from_mask(allowed)
    return SpanOf(members, n=n)

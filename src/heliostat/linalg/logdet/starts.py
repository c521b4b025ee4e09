"""Where dual Newton begins: the best tree inside a pattern, or any positive definite member of S⊥.

The Chow–Liu start solves the problem exactly on the maximum-weight spanning forest of |ρ_ij| inside the pattern; its
gain over a diagonal start is -½ Σ log(1 - ρ²) over the forest's edges, the most any forest can give. Left out: warm
starts (the caller's B, passed as ``start=``).

References:
    C. K. Chow, C. N. Liu (1968), IEEE Trans. Inf. Theory 14, 462 (reconstruction).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet.existence import positive_definite_member
from heliostat.linalg.logdet.subspaces.base import Subspace
from heliostat.linalg.logdet.subspaces.pattern import IntArray, SparsityPattern


def dual_start(covariance: Float[Tensor, "batch n n"], subspace: Subspace) -> Float[Tensor, "batch size"]:
    """Return the coordinates of a positive definite B ∈ S⊥ to start from."""
    if isinstance(subspace, SparsityPattern):
        return _tree_start(covariance, subspace)
    return _projected_start(covariance, subspace)


def _projected_start(covariance: Tensor, subspace: Subspace) -> Tensor:
    """Project A⁻¹ to S⊥ where that is positive definite, else take a fixed member; scale it so that tr(AB) = n."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    candidate = subspace.project_complement_stack(inverse)
    floor = 1e-6 * candidate.diagonal(dim1=-2, dim2=-1).mean(-1).abs()
    eye = torch.eye(subspace.n, dtype=covariance.dtype, device=covariance.device)
    usable = torch.linalg.cholesky_ex(candidate - floor[:, None, None] * eye).info == 0
    if not bool(usable.all()):
        member = positive_definite_member(subspace, covariance.device)
        candidate = torch.where(usable[:, None, None], candidate, member)
    scale = subspace.n / (covariance * candidate).sum((-2, -1))
    return subspace.complement_basis.coordinates(candidate) * scale[:, None]


def _tree_start(covariance: Tensor, pattern: SparsityPattern) -> Tensor:
    """Return B on the maximum spanning forest: B_ij = -ρ/(1 - ρ²), B_ii = 1 + Σ ρ²/(1 - ρ²) in units 1/√(A_ii A_jj)."""
    rows, cols = (torch.from_numpy(side).to(covariance.device) for side in pattern.edges)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = deviation[:, rows] * deviation[:, cols]
    correlation = covariance[:, rows, cols] / scale
    chosen = np.stack(
        [spanning_forest(pattern.n, *pattern.edges, weights) for weights in correlation.abs().cpu().numpy()]
    )
    correlation = torch.where(torch.from_numpy(chosen).to(covariance.device), correlation, 0.0)
    unexplained = 1 - correlation**2
    gain = correlation**2 / unexplained
    diagonal = torch.ones_like(deviation).index_add(1, rows, gain).index_add(1, cols, gain) / deviation**2
    return torch.cat([diagonal, -correlation / unexplained / scale], 1)


def spanning_forest(n: int, rows: IntArray, cols: IntArray, weights: np.ndarray) -> np.ndarray:
    """Mark the edges that Kruskal's algorithm keeps for the maximum total weight; a boolean per edge."""
    parent = list(range(n))
    kept = np.zeros(len(weights), dtype=bool)
    missing = n - 1
    starts, ends = rows.tolist(), cols.tolist()
    for edge in np.argsort(-weights, kind="stable").tolist():
        left, right = starts[edge], ends[edge]
        while parent[left] != left:
            parent[left] = left = parent[parent[left]]
        while parent[right] != right:
            parent[right] = right = parent[parent[right]]
        if left != right:
            parent[left] = right
            kept[edge] = True
            missing -= 1
            if not missing:
                break
    return kept

"""When C touches few rows T, the problem is one on T: eliminate the other rows R by a Schur complement.

    Â = A_TT - A_TR A_RR⁻¹ A_RT = B̂⁻¹ + Ĉ,      C = Ĉ on T,      B = (A - C)⁻¹

because det(A - C) = det A_RR · det(Â - Ĉ). With K = [I; -A_RR⁻¹ A_RT], B = K B̂ Kᵀ + [A_RR⁻¹ on R]. Left out: solving
the small problem (``methods``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reduce_and_lift(
    covariance: Float[Tensor, "batch n n"],
    touched: Int[Tensor, " touched"],
    solve: Callable[[Float[Tensor, "batch touched touched"]], Float[Tensor, "batch touched touched"]],
) -> Float[Tensor, "batch n n"]:
    """Build B of all rows from ``solve``'s B̂ of the touched rows. Limit: with no row touched, B = A⁻¹."""
    n, device = covariance.shape[-1], covariance.device
    touched = touched.to(device)
    others = torch.ones(n, dtype=torch.bool, device=device).index_fill(0, touched, False).nonzero()[:, 0]
    factor = torch.linalg.cholesky(covariance[:, others][:, :, others])
    across = covariance[:, others][:, :, touched]
    weights = torch.cholesky_solve(across, factor)
    reduced = covariance[:, touched][:, :, touched] - across.mT @ weights
    small = solve((reduced + reduced.mT) / 2)
    mixed = -weights @ small
    rest = torch.cholesky_inverse(factor) - mixed @ weights.mT
    order = torch.cat([touched, others])
    ordered = torch.cat([torch.cat([small, mixed.mT], 2), torch.cat([mixed, rest], 2)], 1)
    place = torch.argsort(order)
    return ordered[:, place][:, :, place]

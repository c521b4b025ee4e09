"""Measurement of a result: C, residual, duality gap, trace and divergence, from A and the returned B alone.

Nothing of the solver's state is used, so that a wrong B cannot look right. Left out: matrices stored sparse, whose
own inverse entries are needed (``sparse``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet.subspaces.base import Subspace


@dataclass(frozen=True, slots=True)
class Evidence:
    """C and, per matrix of the batch, the numbers of the certificate; all infinite where B is not positive definite."""

    C: Float[Tensor, "batch n n"]
    residual: Float[Tensor, " batch"]
    duality_gap: Float[Tensor, " batch"]
    trace_error: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]


def log_det(factor: Float[Tensor, "batch n n"]) -> Float[Tensor, " batch"]:
    """Return the log-determinant of M from the Cholesky factor of M."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def measure(
    covariance: Float[Tensor, "batch n n"],
    covariance_factor: Float[Tensor, "batch n n"],
    precision: Float[Tensor, "batch n n"],
    subspace: Subspace,
) -> Evidence:
    """Compute C = Π_S(A - B⁻¹) and every field of the certificate, for a B ∈ S⊥."""
    factor, info = torch.linalg.cholesky_ex(precision)
    remainder = covariance - torch.cholesky_inverse(factor)
    remainder = torch.where((info == 0)[:, None, None], remainder, torch.nan)
    free = subspace.project_stack(remainder)
    residual = (remainder - free).abs().amax((-2, -1)) / covariance.abs().amax((-2, -1))
    trace_error = (covariance * precision).sum((-2, -1)) - subspace.n
    rest, rest_info = torch.linalg.cholesky_ex(torch.nan_to_num(covariance - free))
    precision_log_det = log_det(factor)
    gap = trace_error - precision_log_det - log_det(rest)
    kl = (trace_error - log_det(covariance_factor) - precision_log_det) / 2
    bad = info != 0
    return Evidence(
        free,
        torch.where(bad, torch.inf, residual),
        torch.where(bad | (rest_info != 0), torch.inf, gap),
        torch.where(bad, torch.inf, trace_error),
        torch.where(bad, torch.inf, kl),
    )

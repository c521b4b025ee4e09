"""Gram matrices ``X'X``, each pair of columns multiplied once.

    X'X = sum over blocks b of columns:  X_b' X_{<=b}        (the part on and below the diagonal)

A product of X' and X as two unrelated matrices computes every entry off the diagonal twice, and torch has no symmetric
product (BLAS ``syrk``). With eight blocks 56% of the multiplications are left.

Left out: splitting matrices so small that one product is as fast.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NUM_BLOCKS = 8
SMALLEST_BLOCK = 64


def gram(rows: Float[Tensor, "*batch row n"]) -> Float[Tensor, "*batch n n"]:
    """Compute ``X'X``, all of it.

    Limits:
        At most ``SMALLEST_BLOCK`` columns: ``rows.mT @ rows``, bit for bit.
    """
    width = _width(rows.shape[-1])
    if width >= rows.shape[-1]:
        return rows.mT @ rows
    total = rows.new_zeros(*rows.shape[:-2], rows.shape[-1], rows.shape[-1])
    add_lower_gram_(total, rows, 0.0, 1.0)
    return mirror_(total)


def add_lower_gram_(
    total: Float[Tensor, "*batch n n"], rows: Float[Tensor, "*batch row n"], decay: float, weight: float
) -> None:
    """Update ``total <- decay total + weight X'X`` on and below the diagonal; entries above it become meaningless."""
    width, columns = _width(rows.shape[-1]), rows.mT
    add = torch.addmm if rows.ndim == 2 else torch.baddbmm
    for start in range(0, rows.shape[-1], width):
        end = min(start + width, rows.shape[-1])
        part = total[..., start:end, :end]
        add(part, columns[..., start:end, :], rows[..., :end], beta=decay, alpha=weight, out=part)


def mirror_(total: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Copy the blocks that ``add_lower_gram_`` wrote to their mirror images above the diagonal, in place."""
    width = _width(total.shape[-1])
    for start in range(width, total.shape[-1], width):
        end = min(start + width, total.shape[-1])
        total[..., :start, start:end] = total[..., start:end, :start].mT
    return total


def _width(num_columns: int) -> int:
    return max(SMALLEST_BLOCK, -(-num_columns // NUM_BLOCKS))

"""Eigenvalues and eigenvectors of symmetric matrices, also with very large or small entries.

Left out: matrices that are not symmetric, and derivatives.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_LARGEST_EXPONENT = 126
"""Largest exponent of a power of two that float32 holds together with its inverse."""


def power_of_two(size: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the next even power of two above ``size``, and 1 for 0; division by it and by its root is exact."""
    exponent = torch.frexp(size).exponent
    even = (exponent + exponent % 2).clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return torch.where(size > 0, torch.ldexp(torch.ones_like(size), even), torch.ones_like(size))


def eigenbasis(
    matrix: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Compute eigenvalues, in ascending order, and eigenvectors from the entries on and below the diagonal.

    Both are contiguous, so that a product with them is the same bit for bit after they were saved and loaded.

    Limits:
        A matrix times an even power of two: the same vectors, bit for bit, and values times that.
    """
    unit = power_of_two(matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1))[..., None]
    found = torch.linalg.eigh(matrix / unit[..., None])
    return found.eigenvalues * unit, found.eigenvectors.contiguous()

"""Reading A: checks, and conversion of every accepted form to one float64 stack.

Left out: sparse and banded storage (``sparse.forms``), and whether the subspace admits a decomposition (``existence``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.masked import MaskedTensor

from heliostat.linalg.arrays import as_tensor
from heliostat.linalg.logdet.units import TOO_LARGE, Units, unit_exponents

ASYMMETRY = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest entry, in units
SINGULAR = 1e-10  # smallest eigenvalue, relative to the largest, down to -which A is called singular, not indefinite


@dataclass(frozen=True, slots=True)
class DenseInput:
    """A as a symmetric float64 stack in units, the way back to the caller's kind, and A itself for differentiation."""

    stack: Float[Tensor, "batch n n"]
    units: Units
    restore: Callable[[Tensor], Any]  # (batch, ...) float64 -> caller's leading shape, dtype, kind
    scalar: Callable[[Tensor], Any]  # (batch,) -> float for a single numpy matrix, else as ``restore``
    original: Tensor | None  # the caller's tensor where it asks for gradients


def unmasked(matrix: Any) -> Any:
    """Remove the mask of ``matrix`` if it hides no entry.

    Raises:
        ValueError: it does; numpy would pass on the values under the mask.
    """
    hidden = 0
    if isinstance(matrix, np.ma.MaskedArray):
        hidden = int(np.ma.getmaskarray(matrix).sum())
    elif isinstance(matrix, MaskedTensor):  # result for a True mask
        hidden = int((~matrix.get_mask()).sum())  # type: ignore[no-untyped-call]
        matrix = matrix.get_data()  # type: ignore[no-untyped-call]
    if hidden:
        raise ValueError(
            f"{hidden} entries of A are masked; fill them in, or pass Partial of a scipy.sparse matrix that stores the "
            "known entries"
        )
    return matrix


def read_dense(matrix: Any, each: bool = False) -> DenseInput:
    """Check a dense A and bring it to one form.

    Args:
        each: whether every variable may have a unit of its own.

    Raises:
        ValueError: not square, empty, masked, integer or complex dtype, NaN or infinity, not symmetric; one sentence.
    """
    matrix = unmasked(matrix)
    is_torch = isinstance(matrix, Tensor)
    array: Any = matrix if is_torch else np.asarray(matrix)
    if is_torch and array.layout != torch.strided:
        raise ValueError("A is a sparse tensor; pass a dense tensor, or a scipy.sparse matrix for the sparse path")
    shape = tuple(array.shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"A must be a square matrix or a batch of them (..., n, n), got shape {shape}")
    if 0 in shape:
        raise ValueError(f"A is empty: shape {shape}")
    name = str(array.dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(f"A has dtype {name}; convert it to float64 (or float32) first")
    tensor: Tensor = array if is_torch else as_tensor(array, getattr(torch, name))
    given = tensor.detach().to(torch.float64).reshape(-1, shape[-1], shape[-1])
    if not bool(torch.isfinite(given).all()):
        raise ValueError("A contains NaN or infinity")
    units = Units(unit_exponents(given.diagonal(dim1=-2, dim2=-1).cpu().numpy(), each))
    stack = units.read(given)
    if not bool(torch.isfinite(stack).all()):
        raise ValueError(TOO_LARGE)
    gap = (stack - stack.mT).abs()
    if bool(gap.amax() > ASYMMETRY[tensor.dtype] * stack.abs().amax()):
        apart = float((given - given.mT).abs().flatten()[gap.argmax()])
        raise ValueError(f"A is not symmetric: entries differ from their mirror by up to {apart:.3g}")

    def restore(result: Tensor) -> Any:
        shaped = result.reshape(shape[:-2] + result.shape[1:]).to(tensor.dtype)
        return shaped if is_torch else shaped.numpy()

    def scalar(result: Tensor) -> Any:
        return float(result[0]) if not is_torch and len(shape) == 2 else restore(result)

    original = tensor if is_torch and tensor.requires_grad and torch.is_grad_enabled() else None
    return DenseInput((stack + stack.mT) / 2, units, restore, scalar, original)


def require_positive_definite(
    stack: Float[Tensor, "batch n n"], units: Units, on_pattern: bool = False
) -> Float[Tensor, "batch n n"]:
    """Return the Cholesky factor of A in units.

    Args:
        on_pattern: whether the subspace is a sparsity pattern, for which ``Partial`` needs no positive definite A.

    Raises:
        ValueError: A is not positive definite to working precision; names the smallest eigenvalue found and, where A
            is merely singular, the way to decompose it.
    """
    diagonal = stack.diagonal(dim1=-2, dim2=-1)
    if bool((diagonal > 0).all()):
        factor, info = torch.linalg.cholesky_ex(stack)
        pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2 / diagonal
        singular = (pivots.amin(-1) <= 4 * stack.shape[-1] * torch.finfo(torch.float64).eps) | (info != 0)
        if not bool(singular.any()):
            return torch.as_tensor(factor)
    else:
        singular = (diagonal <= 0).any(-1)
    index = int(singular.nonzero()[0, 0])
    eigenvalues = torch.linalg.eigvalsh(units.write(stack)[index])
    which = f" (matrix {index} of the batch)" if len(stack) > 1 else ""
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    way_out = "add a multiple of the identity"
    if on_pattern and smallest >= -SINGULAR * largest:
        way_out = (
            "with fewer samples than variables call inverse_decomposition(Partial(A), pattern), which reads a numpy A "
            "on the pattern alone and returns B without C, or add a multiple of the identity"
        )
    raise ValueError(
        f"A is not positive definite to working precision{which}: its smallest eigenvalue is {smallest:.6g}, its "
        f"largest {largest:.6g}; {way_out}"
    )

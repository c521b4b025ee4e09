"""Units in which A is of size one: exact powers of two, so that no product of entries overflows or vanishes.

    A = D Ã D,      B = D⁻¹ B̃ D⁻¹,      C = D C̃ D,      D = diag(2^k_i)

Where S is unchanged by every such D, each variable has a unit of its own and Ã has a diagonal in [1/2, 2), however A is
graded; elsewhere all variables share one. Powers of two change no digit, so Ã is A, and a certificate in
these units holds for A. Left out: the exact unit diagonal that Newton's method starts from (``methods``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

TOO_LARGE = "A is not positive definite: an entry is larger than its diagonal allows, |A_ij| < √(A_ii A_jj)"
FORMATS: dict[str, Any] = {"float32": np.finfo(np.float32), "float64": np.finfo(np.float64)}


def unit_exponents(diagonal: Float[NDArray[Any], "*batch n"], each: bool = True) -> Int[NDArray[np.int64], "*batch n"]:
    """Return k with A_ii / 4^k_i in [1/2, 2), 0 where A_ii is not positive; one for a whole matrix unless ``each``."""
    known = np.where(diagonal > 0, diagonal, 1.0 if each else 0.0)
    if not each:
        known = np.broadcast_to(known.max(-1, keepdims=True), diagonal.shape)
    return np.asarray(np.frexp(known)[1] // 2, dtype=np.int64)


def check_held(diagonal: Float[NDArray[Any], "*batch n"], exponents: Int[NDArray[Any], "*batch n"], dtype: str) -> None:
    """Refuse a B that its dtype cannot hold to full precision.

    Args:
        diagonal: of B in units, which bounds all its entries.
        exponents: k of those units.
        dtype: float32 or float64.

    Raises:
        ValueError: an entry would overflow, or be subnormal; the sentence gives the power of ten.
    """
    powers = np.frexp(diagonal)[1] - 2 * exponents
    kind = FORMATS[dtype]
    smallest, largest = int(powers.min()), int(powers.max())
    for power, is_held in ((largest, largest <= kind.maxexp), (smallest, smallest > kind.minexp)):
        if not is_held:
            size = round(power * 0.30103)
            raise ValueError(
                f"B would have a diagonal entry of about 1e{size:+d}, which {dtype} cannot hold to full precision; "
                "give A in other units (B of t A is B / t)" + (", or as float64" if dtype == "float32" else "")
            )


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a stack of matrices; ``exponents`` are their k."""

    exponents: Int[NDArray[np.int64], "batch n"]

    def read(self, covariance: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """Convert A to Ã, or C to C̃."""
        return self._scaled(covariance, -1)

    def write(self, covariance: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """Convert Ã to A, or C̃ to C."""
        return self._scaled(covariance, 1)

    def read_precision(self, precision: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """Convert B to B̃."""
        return self._scaled(precision, 1)

    def write_precision(self, precision: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """Convert B̃ to B."""
        return self._scaled(precision, -1)

    def _scaled(self, matrix: Tensor, sign: int) -> Tensor:
        """Multiply every entry by two factors, of which one alone may be out of the range of float64."""
        if not self.exponents.any():
            return matrix
        whole = sign * (self.exponents[:, :, None] + self.exponents[:, None, :])
        halves = (np.ldexp(1.0, half) for half in (whole // 2, whole - whole // 2))
        first, second = (torch.from_numpy(half).to(matrix.device, matrix.dtype) for half in halves)
        stack = matrix.reshape(-1, *matrix.shape[-2:])
        scaled: Tensor = _Scaled.apply(stack, first, second)  # type: ignore[no-untyped-call]
        return scaled.reshape(matrix.shape)


class _Scaled(torch.autograd.Function):
    """A matrix times two of powers of two, entry by entry; a gradient that leaves the range of numbers is refused."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return matrix * first * second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        first, second = ctx.saved_tensors
        scaled = grad * first * second
        if bool((grad.isfinite() & ~scaled.isfinite()).any()):
            raise ValueError(f"the gradient through A = B⁻¹ + C is too large for {grad.dtype}; give A in other units")
        return scaled, None, None

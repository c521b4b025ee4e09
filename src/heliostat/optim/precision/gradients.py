"""Gradients of bfloat16 weights, accumulated over micro-batches in float32.

Autograd adds each backward pass to ``.grad`` in the weights' own dtype: of 64 passes in bfloat16 about 1% is lost.

Left out: sums inside one backward pass (a weight that is used twice), and ``DistributedDataParallel``, which holds
gradients in the weights' own dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from heliostat.optim.precision.master_copies import is_low_precision


def accumulate_in_float32(parameters: Iterable[Tensor]) -> bool:
    """Store ``.grad`` of trainable low-precision parameters in float32, from the next backward pass on.

    It costs two more bytes per weight while gradients are stored, and saves copies of them while optimizers of
    ``build_optimizer`` step. Torch's own optimizers without master weights need gradients of the weights' dtype.

    Returns:
        Whether gradients are float32: torch before 2.10 has one dtype for a weight and its gradient.

    Limits:
        n passes: the float32 sum of their n gradients, exactly.
        float32 parameters: nothing changes.
    """
    short = [parameter for parameter in parameters if parameter.requires_grad and is_low_precision(parameter)]
    can = hasattr(Tensor, "grad_dtype")
    for parameter in short if can else ():
        if parameter.grad_dtype is not None:
            parameter.grad_dtype = None
            parameter.register_post_accumulate_grad_hook(_widen)  # type: ignore[no-untyped-call]
    return can or not short


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to ``.grad`` what a backward pass of the parameter itself would have added.

    Args:
        gradient: in the weights' dtype; the first one becomes ``.grad`` where its dtype allows.
    """
    if parameter.grad is not None:
        parameter.grad += gradient
        return
    parameter.grad = gradient.float() if _is_widened(parameter) else gradient


def no_gradient(parameter: Tensor) -> Tensor:
    """Return a gradient of zeros, in the dtype that the parameter's gradients have."""
    return torch.zeros_like(parameter, dtype=torch.float32 if _is_widened(parameter) else parameter.dtype)


def _is_widened(parameter: Tensor) -> bool:
    return is_low_precision(parameter) and getattr(parameter, "grad_dtype", parameter.dtype) is None


def _widen(parameter: Tensor) -> None:
    if parameter.grad is not None and is_low_precision(parameter.grad):
        parameter.grad = parameter.grad.float()

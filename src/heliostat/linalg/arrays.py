"""Arrays of any origin as tensors.

Left out: checks of shapes and values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliostat.arguments import listed


def as_tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Convert numbers, arrays, tensors, frames or a generator of numbers to a tensor of ``dtype``.

    Memory is shared as ``torch.as_tensor`` shares it. Read-only memory, such as that of a pandas frame or a memory map,
    is copied, since a tensor could write to it.

    Raises:
        ValueError: the values are no numbers, or not rectangular.
    """
    if isinstance(values, Tensor):
        return values.to(dtype)
    values = listed(values)
    array: Any = np.asarray(values)
    if array.dtype.kind in "US":
        raise ValueError(f"expected numbers, got text: {values!r:.60}")
    if array.dtype == object:  # such as a list of tensors with one element each
        return torch.as_tensor(values, dtype=dtype)
    return torch.as_tensor(np.require(array, requirements="W"), dtype=dtype)

"""The trial of bfloat16 against float32 on a device: timed, since a list of processors' flags goes out of date.

Left out: what else the choice changes, which is rounding (``docs/reference/models.md``).
"""

from __future__ import annotations

from functools import cache
from time import perf_counter

import torch
from torch import Tensor

NUM_ROWS, WIDTH = 64, 512
"""A product of so many rows with a square matrix, as decoding and small models make them."""

NUM_TRIES = 7

MIN_GAIN = 1.25
"""Float32 must take so many times as long. With units it takes about twice as long, without them a tenth."""


@cache
def native_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices faster than float32 ones; 10 ms, once for each process."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    wide, narrow = (seconds_of_product(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return wide >= MIN_GAIN * narrow


@torch.inference_mode()
def seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the least of several times: another program's turn lengthens some of them."""
    x, weight = (torch.ones(rows, WIDTH, dtype=dtype, device=device) for rows in (NUM_ROWS, WIDTH))
    return min(_seconds(x, weight) for _ in range(NUM_TRIES))


def _seconds(x: Tensor, weight: Tensor) -> float:
    began = perf_counter()
    torch.nn.functional.linear(x, weight)
    return perf_counter() - began

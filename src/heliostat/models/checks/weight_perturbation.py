"""Perturb weights by about a sixteenth and restore them, bit for bit and without a copy.

A weight that is lost, tied or overwritten on its way through a folder is detected only if it differs from the value
that the reader would use by default: the original checkpoint's, 0 in a padding row, or that of a tied weight.

Left out: adapters that are still 0 (``models.lora``), and the comparison (``train.run_folder.export``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""Types whose weights are changed; others are left as they are."""
SMALL_BITS, FOR_ZERO, MAX_ENTRIES = 4, 2.0**-8, 2**24
"""The flipped bit of the mantissa, the replacement of 0, and the number of entries per chunk."""


@contextmanager
def perturbed_weights(weights: Iterable[Tensor], seed: int) -> Iterator[None]:
    """Change about half of the entries of every weight inside the block; each is restored afterwards.

    One bit of the mantissa is turned over, and 0 changes places with ``FOR_ZERO``: doing it twice undoes it.

    Args:
        weights: changed in place; they must not be written to inside.
        seed: which entries.
    """
    changed = [each.detach() for each in weights if each.dtype in FLOATS and each.numel()]
    for number, weight in enumerate(changed):
        _turn_over(weight, seed + number)
    try:
        yield
    finally:
        for number, weight in reversed([*enumerate(changed)]):  # two weights may share memory
            _turn_over(weight, seed + number)


def _turn_over(weight: Tensor, seed: int) -> None:
    """Flip the selected bits; this is its own inverse."""
    integer = INTEGERS[weight.element_size()]
    mantissa = -round(math.log2(torch.finfo(weight.dtype).eps))
    bit = 1 << (mantissa - SMALL_BITS)
    for_zero = int(torch.tensor(FOR_ZERO, dtype=weight.dtype).view(integer))
    generator = torch.Generator(weight.device).manual_seed(seed)
    rows = weight.view(integer) if weight.dim() else weight.view(integer)[None]
    for part in torch.split(rows, max(1, MAX_ENTRIES // max(1, rows[0].numel()))):
        chosen = torch.empty(part.shape, dtype=torch.bool, device=part.device).bernoulli_(0.5, generator=generator)
        change = torch.full_like(part, bit)
        change.masked_fill_((part == bit) | (part == for_zero ^ bit), 0)  # where these two changes would meet
        change.masked_fill_((part == 0) | (part == for_zero), for_zero)
        part.bitwise_xor_(change.masked_fill_(~chosen, 0))

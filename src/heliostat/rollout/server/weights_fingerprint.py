"""A fingerprint of a model's weights, to tell whether they have changed since another moment.

Left out: fingerprints that survive a change of dtype, or that nobody could forge.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**20
"""Entries summed in one call: 24 MiB of working memory."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def weights_fingerprint(model: torch.nn.Module) -> tuple[int, ...]:
    """Return two integers per chunk of every weight: the sum of its bits, and their sum weighted by position.

    A sum of the values is not enough: a step that swaps two entries leaves every symmetric sum as it was. Such steps
    happen in bfloat16, where few entries move and all of them by the same small steps.

    **Limits**: equal where the weights are, bit for bit; different where one entry differs, or two are swapped.
    """
    marks = [
        torch.stack([bits.sum(), (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()])
        for parameter in model.parameters()
        for bits in _chunks(parameter.detach())
    ]
    return tuple(int(one) for one in torch.stack([mark.cpu() for mark in marks]).flatten().tolist())


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the bits of all entries, in order."""
    flat = tensor.reshape(-1).view(_BITS[tensor.element_size()])
    return (chunk.long() for chunk in torch.split(flat, CHUNK))

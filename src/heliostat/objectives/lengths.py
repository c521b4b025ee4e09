"""How the lengths of sequences enter a loss: a weight per sequence, and one denominator per optimizer step.

    loss = sum_i w_i loss_i / N        loss_i: the loss of sequence i, summed over its tokens

``none``      w_i = 1         N = sequences             every sequence counts by its sum
``sequence``  w_i = 1/|y_i|   N = sequences             mean over tokens, then over sequences
``constant``  w_i = 1         N = sequences * constant  as ``none``, in units of a fixed length
``token``     w_i = 1         N = tokens                mean over the tokens of the whole step

Left out: anything that depends on a micro-batch; N is a property of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

LengthNormalization = Literal["none", "sequence", "constant", "token"]

_DENOMINATORS: dict[LengthNormalization, Callable[[int, int, float], float]] = {
    "none": lambda num_sequences, num_tokens, constant: num_sequences,
    "sequence": lambda num_sequences, num_tokens, constant: num_sequences,
    "constant": lambda num_sequences, num_tokens, constant: num_sequences * constant,
    "token": lambda num_sequences, num_tokens, constant: num_tokens,
}


def denominator(mode: LengthNormalization, num_sequences: int, num_tokens: int, constant: float) -> float:
    """Compute N of the table above from the sequences and tokens of one whole optimizer step.

    Raises:
        ValueError: there is nothing to average over.
    """
    total = float(_DENOMINATORS[mode](num_sequences, num_tokens, constant))
    if total == 0:
        raise ValueError(
            f"an optimizer step needs something to average over, got {num_sequences} sequences with "
            f"{num_tokens} completion tokens (length_normalization = '{mode}')"
        )
    return total


def sequence_weight(
    mode: LengthNormalization, num_tokens: Int[Tensor, " sequence"], dtype: torch.dtype
) -> Float[Tensor, " sequence"]:
    """Compute w_i of the table above; an empty sequence has no token to weigh, so its weight is 1 by convention."""
    if mode == "sequence":
        return 1.0 / num_tokens.clamp(min=1).to(dtype)
    return torch.ones(num_tokens.shape, dtype=dtype, device=num_tokens.device)

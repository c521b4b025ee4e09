r"""Advantages for which a plain policy gradient is a natural gradient, in the space of samples.

    natural gradient      S^T (damping I + S S^T / B)^{-1} A / B,   S = scores of the B sampled sequences, one a row
    so the plain gradient of A' = damping (damping I + S S^T / B)^{-1} A is damping times it

Only the Gram matrix ``S S^T`` is needed. That of the output projection's scores factors over tokens,
``K_ij = sum_{t in i, s in j} (e_t . e_s)(h_t . h_s)`` with ``e_t = onehot(y_t) - pi_t`` and ``h_t`` the state: one
forward pass and no backward. That of all parameters takes each sequence's own gradient.

**Limits** damping to infinity: ``A' = A``. The Gram matrix from tokens is that of the scores themselves.
Source: the sample-space form is the natural policy gradient's push-through identity; transformed advantages are the
idea of RAT (Sun 2026, arXiv 2605.18591), reconstructed here without its block Kaczmarz solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.train.logprobs.packing import Row, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Batch

Gram = Float[Tensor, "sequence sequence"]


@torch.no_grad()
def last_layer_gram(policy: Policy, rows: Sequence[Row]) -> Gram:
    """Of the output projection's scores, from one forward pass."""
    hidden = policy.hidden(rows)
    tokens = torch.tensor([token for row in rows for token in row.completion.token_ids])
    errors = -policy.loaded.head.logits(hidden).softmax(dim=-1)
    errors[torch.arange(len(tokens)), tokens] += 1
    pairs = (errors @ errors.T) * (hidden @ hidden.T)
    sequence = torch.repeat_interleave(torch.tensor([row.num_tokens for row in rows]))
    by_row = pairs.new_zeros(len(rows), len(tokens)).index_add_(0, sequence, pairs)
    return by_row.new_zeros(len(rows), len(rows)).index_add_(1, sequence, by_row)


def whole_gram(policy: Policy, rows: Sequence[Row]) -> Gram:
    """Of all parameters' scores, one backward pass for every sequence that is unlike all before it."""
    parameters = [parameter for parameter in policy.loaded.model.parameters() if parameter.requires_grad]
    logp = torch.split(policy.log_probs(rows), [row.num_tokens for row in rows])
    place: dict[tuple[int, tuple[int, ...]], int] = {}
    which = [place.setdefault((row.group, row.completion.token_ids), len(place)) for row in rows]
    first = [which.index(unlike) for unlike in range(len(place))]
    scores = [torch.autograd.grad(logp[index].sum(), parameters, retain_graph=True) for index in first]
    flat = torch.stack([torch.cat([part.flatten() for part in score]) for score in scores])
    return (flat @ flat.T)[which][:, which]


GRAMS: dict[str, Callable[[Policy, Sequence[Row]], Gram]] = {"last layer": last_layer_gram, "whole": whole_gram}


def transformed(policy: Policy, batch: Batch, gram: str, relative_damping: float) -> list[Tensor]:
    """Return transformed advantages by group; damping in units of the scores' mean square."""
    advantages = torch.cat([group.advantages for group in batch.groups]).double()
    matrix = GRAMS[gram](policy, rows_of(batch.groups)).double()
    found = solve(matrix, advantages, relative_damping).float()
    return list(torch.split(found, [len(group.advantages) for group in batch.groups]))


def solve(matrix: Gram, advantages: Float[Tensor, " sequence"], relative_damping: float) -> Float[Tensor, " sequence"]:
    """``damping (damping I + K / B)^{-1} A`` with ``damping = relative_damping tr K / B``."""
    num = len(matrix)
    damping = relative_damping * matrix.diagonal().mean()
    eye = torch.eye(num, dtype=matrix.dtype)
    return torch.linalg.solve(eye + matrix / (num * damping), advantages)

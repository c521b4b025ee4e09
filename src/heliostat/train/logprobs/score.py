"""Log-probabilities of existing completions under a policy, without gradient.

Left out: keeping ranks in step (``train.update.updater``), and the use of the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heliostat.spans import span
from heliostat.train.logprobs.packing import Row, microbatches, rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Group, TrainingGroup

Anchor = tuple[Tensor, ...]
"""Token log-probabilities of each completion of a group."""


def score(
    policy: Policy,
    groups: Sequence[TrainingGroup],
    tokens_per_microbatch: int,
    count: Callable[[Sequence[Row], bool], None],
    read: Callable[[Sequence[Row]], Tensor] | None = None,
) -> list[Anchor]:
    """Compute token log-probabilities of every completion under the current ``policy``, by group.

    Args:
        count: called for every forward, for the ledger.
        read: computes something else of a micro-batch, one row per token.
    """
    pieces = iter(score_rows(policy, rows_of(groups), tokens_per_microbatch, count, read))
    return [tuple(next(pieces) for _ in group.group.completions) for group in groups]


@torch.no_grad()
def score_rows(
    policy: Policy,
    rows: Sequence[Row],
    tokens_per_microbatch: int,
    count: Callable[[Sequence[Row], bool], None],
    read: Callable[[Sequence[Row]], Tensor] | None = None,
) -> list[Tensor]:
    """Compute token log-probabilities (or ``read``) of every row under the current ``policy``; see ``score``."""
    read = read or policy.log_probs
    by_row: dict[int, Tensor] = {}
    parts = microbatches(rows, tokens_per_microbatch, policy.padded_tokens)
    for part in parts:
        with span("score"):
            logp = read(part).cpu()
        count(part, policy.shared_prompt)
        for row, piece in zip(part, torch.split(logp, [row.num_tokens for row in part]), strict=True):
            by_row[id(row)] = piece
    return [by_row[id(row)] for row in rows]


def sampler_anchor(group: Group) -> Anchor:
    """Return the sampler's own log-probabilities as an anchor."""
    return tuple(torch.from_numpy(completion.logp_gen) for completion in group.completions)

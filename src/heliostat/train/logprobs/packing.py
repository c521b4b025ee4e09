"""Packing of ragged groups into micro-batches under a token budget; only this file decides on padding.

Rows of similar length go together. A group's rows stay together if they fit, so that its prompt is run once; a larger
group is split, unless the objective compares its completions. The result does not depend on packing: losses are sums
over tokens (or groups) divided by a denominator of the whole optimizer step, so every partition of the batch gives the
same gradient (to float accuracy).

Left out: the forward pass itself (``layouts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.types import Completion, Prompt, TokenBatch, TrainingGroup


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to be scored, with the inputs of its objective.

    Attributes:
        group: index of its group; rows of one group share one prompt.
        logp_old: anchor log-probabilities; ``None`` if the anchor is the current policy itself.
        logp_ref: the reference's log-probabilities; ``None`` without a reference.
        taught: the teacher's log-probabilities or states (``TrainingGroup``); ``None`` without a teacher.
    """

    group: int
    prompt: Prompt
    completion: Completion
    advantage: float
    logp_old: Float[Tensor, " token"] | None = None
    logp_ref: Float[Tensor, " token"] | None = None
    taught: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Scored tokens: the sampled ones."""
        return self.completion.num_sampled

    @property
    def length(self) -> int:
        """All tokens after the prompt, of an environment too."""
        return len(self.completion.token_ids)

    @property
    def scored(self) -> list[int]:
        """The places of the scored tokens in the completion."""
        return [place for start, end in self.completion.spans for place in range(start, end)]

    @property
    def context_length(self) -> int:
        return len(self.prompt.context_ids)


def rows_of(groups: Sequence[TrainingGroup]) -> list[Row]:
    """Turn every completion of every group into a row, in order."""
    return [
        Row(
            group=index,
            prompt=group.group.prompt,
            completion=completion,
            advantage=advantage,
            logp_old=None if group.logp_old is None else group.logp_old[member],
            logp_ref=None if group.logp_ref is None else group.logp_ref[member],
            taught=None if group.taught is None else group.taught[member],
        )
        for index, group in enumerate(groups)
        for member, (completion, advantage) in enumerate(
            zip(group.group.completions, group.advantages.tolist(), strict=True)
        )
    ]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """The size of a group (or a piece of one) in tokens: its prompt, all its completions, the longest of them.

    Tokens of an environment count, since they are run through the model.
    """

    context: int
    num_rows: int
    num_tokens: int
    longest: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> GroupShape:
        """Return the shape of rows that share one prompt."""
        lengths = [row.length for row in rows]
        return cls(rows[0].context_length, len(rows), sum(lengths), max(lengths))


Cost = Callable[[Sequence[GroupShape]], int]
"""Tokens that one forward over these groups computes, padding included."""


def by_group(rows: Sequence[Row]) -> list[list[Row]]:
    """Collect the rows of each group, which share a prompt."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.values())


MAX_PADDING, MIN_SHARE = 0.1, 1 / 16
"""Largest share of padding that a further group may add, once a micro-batch has this share of its budget. Matrix
products of that many tokens run as fast as larger ones, and padding is wasted work."""


def microbatches(rows: Sequence[Row], max_tokens: int, cost: Cost, *, whole_groups: bool = False) -> list[list[Row]]:
    """Split rows into micro-batches that cost at most ``max_tokens`` each.

    A single row may exceed it, and with ``whole_groups`` a single group.
    """
    groups = by_group(rows)
    pieces = groups if whole_groups else [piece for group in groups for piece in _split(group, max_tokens, cost)]
    shaped = sorted(((GroupShape.of(piece), piece) for piece in pieces), key=lambda pair: cost([pair[0]]))
    batches: list[list[Row]] = []
    together: dict[int, GroupShape] = {}
    for shape, piece in shaped:
        group = piece[0].group
        # Two pieces of one group in one batch would run as one group, so they go to different batches.
        if batches and group not in together and _fits([*together.values(), shape], max_tokens, cost):
            batches[-1] += piece
            together[group] = shape
        else:
            batches.append(list(piece))
            together = {group: shape}
    return batches


MAX_PARTS, MIN_TOKENS = 16, 400
"""Micro-batches that keep many workers busy, and tokens below which each costs more than it saves."""


def balanced_budget(rows: Sequence[Row], max_tokens: int, cost: Cost) -> int:
    """Return a budget of tokens, at most ``max_tokens``, that gives micro-batches of nearly the same size.

    Their number is about a power of two, so that workers end together, and at most ``MAX_PARTS``. They have about
    ``MIN_TOKENS`` or more. No group is split for it, which would run its prompt twice. The budget is a function of the
    rows alone.

    Limits:
        Fewer than ``2 * MIN_TOKENS`` tokens: all rows in one micro-batch.
        Groups of one size, as many as a power of two: micro-batches of one size.
    """
    costs = sorted(cost([GroupShape.of(group)]) for group in by_group(rows))
    if not costs:
        return max_tokens
    num_parts = min(MAX_PARTS, max(1, sum(costs) // MIN_TOKENS))
    return min(max_tokens, _least_budget(costs, 1 << num_parts.bit_length() - 1))


def _least_budget(costs: Sequence[int], num_parts: int) -> int:
    """Return the least budget that fills at most ``num_parts`` micro-batches, one after the other."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if _num_filled_parts(costs, middle) <= num_parts:
            high = middle
        else:
            low = middle + 1
    return low


def _num_filled_parts(costs: Iterable[int], budget: int) -> int:
    num_parts, left = 0, 0
    for cost in costs:
        if cost > left:
            num_parts, left = num_parts + 1, budget
        left -= cost
    return num_parts


def _fits(shapes: Sequence[GroupShape], max_tokens: int, cost: Cost) -> bool:
    """Return whether the last of these groups may join the others."""
    together = cost(shapes)
    unpadded = sum(cost([shape]) for shape in shapes)
    small = cost(shapes[:-1]) < MIN_SHARE * max_tokens
    return together <= max_tokens and (small or together <= (1 + MAX_PADDING) * unpadded)


def _split(group: list[Row], max_tokens: int, cost: Cost) -> list[list[Row]]:
    """Halve a group, sorted by length, until each piece fits."""
    if len(group) == 1 or cost([GroupShape.of(group)]) <= max_tokens:
        return [group]
    ordered = sorted(group, key=lambda row: row.length)
    half = len(ordered) // 2
    return _split(ordered[:half], max_tokens, cost) + _split(ordered[half:], max_tokens, cost)


def token_batch(rows: Sequence[Row], logp_new: Float[Tensor, " token"]) -> TokenBatch:
    """Build the objective's batch of these rows; without an anchor it is the current policy, and log-ratios are 0."""
    device = logp_new.device
    num_tokens = torch.tensor([row.num_tokens for row in rows], device=device)
    labels: dict[int, int] = {}
    group = [labels.setdefault(row.group, len(labels)) for row in rows]
    current = torch.split(logp_new.detach(), [row.num_tokens for row in rows])
    old = [here if row.logp_old is None else row.logp_old.to(device) for row, here in zip(rows, current, strict=True)]
    ref = [row.logp_ref.to(device) for row in rows if row.logp_ref is not None]
    return TokenBatch(
        # With the size of its output known, this does not wait for a GPU.
        sequence=torch.repeat_interleave(
            torch.arange(len(rows), device=device), num_tokens, output_size=logp_new.shape[0]
        ),
        num_tokens=num_tokens,
        advantage=torch.tensor([row.advantage for row in rows], dtype=logp_new.dtype, device=device),
        logp_old=torch.cat(old),
        logp_gen=torch.from_numpy(np.concatenate([row.completion.logp_gen for row in rows])).to(logp_new),
        logp_ref=torch.cat(ref) if ref else None,
        group=torch.tensor(group, dtype=torch.int64, device=device),
    )

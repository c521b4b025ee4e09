"""Layouts of rows in one forward pass: the same arithmetic, each the cheapest for some batches.

    plain    prompt and completion, one row each        any model
    tree     prompt, then all its completions, in one row; a mask hides siblings from each other
    alone    prompt and completion, one pass each       any model at all
    cached   prompt once, its keys and values expanded over its completions, which attend to them
    packed   all prompts and completions in one row, each attending to its own past alone (``packed_layout``)

A tree has no padding inside a group, but attends from every token to every other: best for short completions of
uneven length. The cache pads completions to the longest, but attends only within a row: best for long completions.
All return the hidden state before every scored token, in row order, so callers do not depend on the layout. An
environment's tokens run through the model like the others, and no hidden state before them is returned.

Left out: which layouts are exact for a model (``layout_trial``), the choice between them (``policy``), and splitting a
batch into micro-batches (``packing``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.rollout import key_values
from heliostat.train.logprobs.packing import GroupShape, Row


@dataclass(frozen=True, slots=True)
class Work:
    """Cost of one forward pass, padding included; not the few tokens of ``ROUND_TO``.

    Attributes:
        num_tokens: tokens run through the model.
        num_pairs: (token, attended position) pairs.
        num_calls: calls of attention in each layer.
    """

    num_tokens: int
    num_pairs: int
    num_calls: int = 1


ROUND_TO = 16
"""Multiple of tokens that products in bfloat16 are filled up to on a CPU: oneDNN compiles one for every size, which
takes time and memory, and a step has new sizes every time."""


def num_filled(num_tokens: int, num_rows: int, like: Tensor) -> int:
    """Return the tokens of each row, at least ``num_tokens``, that make all rows' a multiple of ``ROUND_TO``.

    Args:
        like: a weight or a state of the model; other dtypes and devices are not filled up.
    """
    if like.dtype != torch.bfloat16 or like.device.type != "cpu":
        return num_tokens
    step = ROUND_TO // math.gcd(num_rows, ROUND_TO)
    return -(-num_tokens // step) * step


class Layout(Protocol):
    """One way to run rows through a model."""

    def work(self, groups: Sequence[GroupShape]) -> Work:
        """Compute the cost of a forward pass over these groups."""
        ...

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        """Compute the hidden states that predict the scored tokens, concatenated in row order."""
        ...


class Plain:
    """One row each, padded on the right: under causal attention and recurrence no scored token sees the padding.

    Args:
        fills_up: whether rows may be padded beyond the longest (``ROUND_TO``).
    """

    def __init__(self, fills_up: bool = True) -> None:
        self._fills_up = fills_up

    def work(self, groups: Sequence[GroupShape]) -> Work:
        width = max(group.context + group.longest for group in groups) - 1
        tokens = sum(group.num_rows for group in groups) * width
        return Work(tokens, tokens * width)

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        # The last token predicts nothing that is scored, so it is no input.
        inputs = [(row.prompt.context_ids + row.completion.token_ids)[:-1] for row in rows]
        hidden = loaded.head.hidden(input_ids=_padded(inputs, loaded, self._fills_up), use_cache=False)
        # Position i predicts token i + 1, so a completion's tokens are predicted from the context's last position on.
        picked = [
            hidden[index, row.context_length - 1 + start : row.context_length - 1 + end]
            for index, row in enumerate(rows)
            for start, end in row.completion.spans
        ]
        return torch.cat(picked)


class Alone:
    """One row at a time, unpadded: the model's own forward, for models whose rows in a batch affect each other."""

    def work(self, groups: Sequence[GroupShape]) -> Work:
        tokens = sum(group.num_rows * (group.context + group.longest - 1) for group in groups)
        return Work(tokens, sum(group.num_rows * (group.context + group.longest - 1) ** 2 for group in groups))

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        return torch.cat([Plain(fills_up=False).hidden(loaded, [row]) for row in rows])


class Tree:
    """One row per group: the prompt, then each completion; a token sees only the prompt and its completion's past."""

    def work(self, groups: Sequence[GroupShape]) -> Work:
        width = max(group.context + group.num_tokens - group.num_rows for group in groups)
        return Work(len(groups) * width, len(groups) * width * width)

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        trees: dict[int, _TreeBuilder] = {}
        spans = [trees.setdefault(row.group, _TreeBuilder(row.prompt.context_ids)).add(row) for row in rows]
        input_ids = _padded([tree.ids for tree in trees.values()], loaded, fill_up=True)
        device, width = input_ids.device, input_ids.shape[1]
        hidden = loaded.head.hidden(
            input_ids=input_ids,
            # Padding counts as the end of the prompt: it may see the prompt, and no token sees it.
            attention_mask=_tree_mask(_filled([tree.segments for tree in trees.values()], 0, device, width)),
            position_ids=_filled([tree.positions for tree in trees.values()], 0, device, width),
            use_cache=False,
        )
        order = {group: index for index, group in enumerate(trees)}
        picked = [
            # The prompt's last token predicts the first of each completion.
            order[row.group] * width + (inputs[place - 1] if place else row.context_length - 1)
            for row, inputs in zip(rows, spans, strict=True)
            for place in row.scored
        ]
        return hidden.flatten(0, 1)[torch.tensor(picked, device=device)]


class _TreeBuilder:
    """One tree under construction: token ids, their true positions, and which completion they belong to (0: prompt)."""

    def __init__(self, context: tuple[int, ...]) -> None:
        self.ids = list(context)
        self.positions = list(range(len(context)))
        self.segments = [0] * len(context)
        self.context_length, self.num_rows = len(context), 0

    def add(self, row: Row) -> range:
        """Append a completion's inputs (all but its last token), and return their positions in the row."""
        inputs = row.completion.token_ids[:-1]
        self.num_rows += 1
        began = len(self.ids)
        self.ids += inputs
        self.positions += range(self.context_length, self.context_length + len(inputs))
        self.segments += [self.num_rows] * len(inputs)
        return range(began, len(self.ids))


def _tree_mask(segment: Int[Tensor, "tree token"]) -> Tensor:
    """Build the mask ``[tree, 1, token, token]``: past tokens of the prompt (segment 0) or of the same completion."""
    past = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool, device=segment.device).tril()
    related = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    return (past & related)[:, None]


class Cached:
    """The prompt once per group; the completions, padded on the right, attend to its keys and values."""

    def work(self, groups: Sequence[GroupShape]) -> Work:
        width = max(group.context for group in groups)
        rest = max(group.longest for group in groups) - 1
        num_rows = sum(group.num_rows for group in groups)
        return Work(
            len(groups) * width + num_rows * rest, len(groups) * width * width + num_rows * rest * (width + rest)
        )

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        contexts = {row.group: row.prompt.context_ids for row in rows}
        order = {group: index for index, group in enumerate(contexts)}
        width = max(map(len, contexts.values()))
        # Prompts are padded on the left, so that every completion continues in the same column of the cache.
        ids = _padded([(loaded.pad_id,) * (width - len(c)) + c for c in contexts.values()], loaded)
        device = ids.device
        prompt_of_row = torch.tensor([order[row.group] for row in rows], device=device)
        start = (width - torch.tensor([len(c) for c in contexts.values()], device=device))[:, None]
        columns = torch.arange(width, device=device)[None]
        cache = DynamicCache(config=loaded.model.config)
        prompt_hidden = loaded.head.hidden(
            input_ids=ids,
            attention_mask=(columns >= start).long(),
            position_ids=(columns - start).clamp(min=0),
            memory=cache,
            use_cache=True,
        )
        # The prompt's last position predicts the first token of each of its completions.
        hidden = prompt_hidden[:, -1][prompt_of_row].unsqueeze(1)
        if max(row.length for row in rows) > 1:
            rest = self._continue(loaded, rows, cache, start[prompt_of_row], prompt_of_row, width)
            hidden = torch.cat([hidden, rest], dim=1)
        picked = [index * hidden.shape[1] + place for index, row in enumerate(rows) for place in row.scored]
        return hidden.flatten(0, 1)[torch.tensor(picked, device=device)]

    def _continue(
        self,
        loaded: LoadedModel,
        rows: Sequence[Row],
        cache: DynamicCache,
        start: Tensor,
        prompt_of_row: Tensor,
        width: int,
    ) -> Float[Tensor, "row token feature"]:
        """Compute hidden states of the completions' inputs (all but each last token) with their prompt's cache."""
        ids = _padded([row.completion.token_ids[:-1] for row in rows], loaded, fill_up=True)
        for layer in cache.layers:
            keys, values = key_values(layer)
            # Indexing copies a prompt's entries for each completion, and gradients of the copies add up in them.
            layer.keys, layer.values = keys[prompt_of_row], values[prompt_of_row]  # type: ignore[union-attr]
        steps = torch.arange(ids.shape[1], device=ids.device)
        columns = torch.arange(width + ids.shape[1], device=ids.device)
        after_padding = columns[None, None] >= start[:, :, None]
        causal = columns[None, None] <= width + steps[None, :, None]
        return loaded.head.hidden(
            input_ids=ids,
            attention_mask=(after_padding & causal)[:, None],
            position_ids=width - start + steps[None],
            memory=cache,
            use_cache=True,
        )


def _padded(rows: Iterable[Sequence[int]], loaded: LoadedModel, fill_up: bool = False) -> Int[Tensor, "row token"]:
    weight = next(loaded.model.parameters())
    lists = list(rows)
    width = max(map(len, lists))
    return _filled(lists, loaded.pad_id, weight.device, num_filled(width, len(lists), weight) if fill_up else width)


def _filled(rows: Iterable[Sequence[int]], filler: int, device: torch.device, width: int) -> Int[Tensor, "row token"]:
    """Build a tensor of rows, each filled up on the right."""
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long, device=device)

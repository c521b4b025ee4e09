"""The layout without padding: all prompts and completions in one row, each attending to its own past alone.

    token     p p p a a a b b q q c        one row through every map of the model
    attends   p p p |       |   |          a prompt to itself
                    p+a     p+b q q+c      a completion to its prompt and itself, one call each

Every linear map sees as many tokens as there are, and attention as many pairs. The price is one call of attention per
completion and layer, which many short completions do not pay back (``Work.num_calls``).

Left out: models that attend in another way, or within windows, which the trial of layouts refuses; and layers that are
recomputed in the backward pass, where the model's own attention is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.models import LoadedModel
from heliostat.models.transformers_internals import (
    has_usual_attention,
    register_attention,
    usual_attention,
    with_attention,
)
from heliostat.train.logprobs.layouts import Work, num_filled
from heliostat.train.logprobs.packing import GroupShape, Row

ATTENTION = "heliostat_packed"
"""The name of this attention in transformers' registry."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text in the row.

    Attributes:
        length: its tokens; pieces follow each other without a gap.
        prompt: the number of its prompt's piece; ``None``: it is a prompt itself.
        mask: what its tokens see of the prompt and itself, ``[1, 1, token, column]``.
    """

    length: int
    prompt: int | None = None
    mask: Tensor | None = None


class Packed:
    """All rows in one, without padding; prompts once per group."""

    @staticmethod
    def suits(loaded: LoadedModel) -> bool:
        """Return whether a model's layers take an attention function, on a device where many calls are cheap."""
        on_cpu = next(loaded.model.parameters()).device.type == "cpu"
        return on_cpu and has_usual_attention(loaded.model)

    def work(self, groups: Sequence[GroupShape]) -> Work:
        tokens = pairs = calls = 0
        for group in groups:
            rest = group.num_tokens - group.num_rows
            tokens += group.context + rest
            pairs += group.context**2 + rest * (group.context + group.longest)
            calls += 1 + group.num_rows
        return Work(tokens, pairs, calls)

    def hidden(self, loaded: LoadedModel, rows: Sequence[Row]) -> Float[Tensor, "token feature"]:
        device = next(loaded.model.parameters()).device
        packed = _Row(device)
        predicted = [place for row in rows for place in packed.add(row)]
        packed.fill(num_filled(len(packed.ids), 1, next(loaded.model.parameters())))
        with with_attention(loaded.model, ATTENTION):
            hidden = loaded.head.hidden(
                input_ids=torch.tensor([packed.ids], device=device),
                # Not used: every piece has its own. A mask of four dimensions keeps transformers from building one.
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
                position_ids=torch.tensor([packed.positions], device=device),
                use_cache=False,
                packed_pieces=packed.pieces,
            )
        return hidden[0, torch.tensor(predicted, device=device)]


@dataclass(slots=True)
class _Row:
    """The row under construction: ids, true positions, and the pieces that attend together."""

    device: torch.device
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    _prompts: dict[int, int] = field(default_factory=dict)
    _last_of_prompt: dict[int, int] = field(default_factory=dict)

    def add(self, row: Row) -> list[int]:
        """Append a completion, after its prompt if it is the first; return the places that predict its tokens."""
        if row.group not in self._prompts:
            self._prompts[row.group] = len(self.pieces)
            self.pieces.append(Piece(row.context_length))
            self._append(row.prompt.context_ids, 0)
            self._last_of_prompt[row.group] = len(self.ids) - 1
        began, context, inputs = len(self.ids), row.context_length, row.completion.token_ids[:-1]
        if inputs:
            past = torch.ones(len(inputs), context + len(inputs), dtype=torch.bool, device=self.device).tril(context)
            self.pieces.append(Piece(len(inputs), self._prompts[row.group], past[None, None]))
            self._append(inputs, context)
        # The prompt's last token predicts the first of each completion.
        return [began + place - 1 if place else self._last_of_prompt[row.group] for place in row.scored]

    def fill(self, num_tokens: int) -> None:
        """Append tokens that nothing attends to and that predict nothing, up to this number."""
        if missing := num_tokens - len(self.ids):
            self.pieces.append(Piece(missing))
            self._append([self.ids[-1]] * missing, 0)

    def _append(self, ids: Sequence[int], position: int) -> None:
        self.ids += ids
        self.positions += range(position, position + len(ids))


def _attention(
    module: Any,
    query: Float[Tensor, "1 head token feature"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_pieces: Sequence[Piece] | None = None,
    **usual: Any,
) -> tuple[Tensor, None]:
    """Attend in one layer, called by transformers, piece by piece; return ``[1, token, head, feature]``."""
    if packed_pieces is None:
        return usual_attention(module, query, key, value, attention_mask, **usual)
    if usual.get("sliding_window") is not None:
        raise NotImplementedError("its layers attend within a window")
    # In float32 whatever the weights are: a processor's backward pass of short attention takes half as long in it.
    dtype = query.dtype
    # One split of each: the gradient of a slice would be as long as the whole row.
    lengths = [piece.length for piece in packed_pieces]
    queries, keys, values = (torch.split(states.float(), lengths, dim=2) for states in (query, key, value))
    found = []
    for number, piece in enumerate(packed_pieces):
        seen = [number] if piece.prompt is None else [piece.prompt, number]
        past = (torch.cat([states[each] for each in seen], dim=2) for states in (keys, values))
        found.append(usual_attention(module, queries[number], *past, piece.mask, **usual)[0])
    return torch.cat(found, dim=1).to(dtype), None


register_attention(ATTENTION, _attention)

"""Decoding against one copy of each prompt: the rows of a group attend to it together, and to their own tokens apart.

    softmax over [common | prompt | own]: scores part by part, one softmax over all of them, values part by part

A row is one completion that is being decoded. A decoding step is bound by reading keys and values. Here the keys and
values of a prompt are read once per group and never copied: a step reads ``P + G T`` positions for a group of ``G``
completions with ``T`` tokens each behind ``P`` prompt tokens, instead of ``G (P + T)``. The beginning that all prompts
share (a system prompt, worked examples) is stored once for all.

    what                    class           layout of keys and values, per layer
    all prompts' beginning  SharedPrompts   [1, head, column, feature]
    each prompt's rest      SharedPrompts   [group, head, column, feature], padded on the left
    each row's own tokens   ColumnLayer     [column, row, head, feature], padded on the left

Own tokens lie column by column, so that the next token of all rows is written to one piece of memory. The arithmetic is
the model's own to rounding. Models reach it through transformers' attention interface, or are run layer by layer
(``in_process.fused``).

Left out: models that do not use that interface (``in_process.rows`` copies prompts for those), and GPUs, whose fused
kernels are better served by one row each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from heliostat.models import LoadedModel
from heliostat.models.architecture_probes import probe_ids, probing
from heliostat.models.transformers_internals import (
    attention_in_use,
    register_attention,
    takes_attention_functions,
    usual_attention,
    with_attention,
)
from heliostat.rollout.in_process.rows import key_values
from heliostat.rollout.in_process.shared_prompts import ColumnLayer, SharedPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "heliostat_shared_prompt"
"""The name of this attention in transformers' registry."""

USUAL = "sdpa"
"""The attention it stands in for."""


class SharedRows:
    """All live rows: the common beginning once, their prompts once per group, and their own tokens.

    Args:
        prefilled: the prompts' cache: ``num_common`` columns that are the same in all, then the rest of each prompt.
        start: first column of each rest that holds a token.
        room: columns to allocate for the rows' own tokens.

    Attributes:
        start: first own column of each row that holds a token.
        cache: the cache to pass to the model as ``past_key_values``.
    """

    def __init__(
        self,
        prefilled: DynamicCache,
        start: Int[Tensor, " group"],
        group_size: int,
        room: int,
        num_common: int = 0,
    ) -> None:
        states = [key_values(layer) for layer in prefilled.layers]
        group = torch.arange(len(start), device=start.device).repeat_interleave(group_size)
        self._num_common = num_common
        self._common = None
        if num_common:
            # Clones, since views would keep the whole prefill in memory.
            common = [(keys[:1, :, :num_common].clone(), values[:1, :, :num_common].clone()) for keys, values in states]
            self._common = SharedPrompts(common, start.new_zeros(1), torch.zeros_like(group))
            states = [(keys[:, :, num_common:].clone(), values[:, :, num_common:].clone()) for keys, values in states]
        self.prompts = SharedPrompts(states, start, group)
        self.start = torch.zeros_like(group)
        self._layers = [ColumnLayer(keys_and_values, len(group), room) for keys_and_values in states]
        self.cache = Cache(layers=list(self._layers))
        self._hidden: Tensor | None = None

    @property
    def length(self) -> int:
        """The number of own columns in use."""
        return self._layers[0].length

    @property
    def num_rows(self) -> int:
        return len(self.start)

    @property
    def num_attended(self) -> int:
        """Positions that the next tokens of all rows attend to, themselves included."""
        return int((self.positions + 1).sum())

    @property
    def positions(self) -> Int[Tensor, "row 1"]:
        """Position of the token each row is about to be fed."""
        return (self._num_common + self.prompts.row_lengths + self.length - self.start).unsqueeze(1)

    def hidden(self, loaded: LoadedModel, token: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token, inside ``attending``, and return the hidden states after it."""
        self.hide_padding()
        return loaded.head.hidden(
            input_ids=token,
            # Not used: padding is masked below. A mask of four dimensions keeps transformers from building its own.
            attention_mask=torch.ones(self.num_rows, 1, 1, 1, dtype=torch.bool),
            position_ids=self.positions,
            memory=self.cache,
            use_cache=True,
            shared_rows=self,
        )

    def hide_padding(self) -> None:
        """Prepare a pass: mask the columns that hold no token of a row, in its prompt or before its own first token."""
        if not (bool(self.start.any()) or bool(self.prompts.start.any())):
            self._hidden = None
            return
        # In the order of the scores: common beginning (never padded), prompt, own columns with the next one.
        columns = torch.arange(max(self.prompts.length, self.length + 1), device=self.start.device)
        none = columns.new_zeros(self.num_rows, self._num_common, dtype=torch.bool)
        prompt = columns[: self.prompts.length] < self.prompts.start[self.prompts.group][:, None]
        own = columns[: self.length + 1] < self.start[:, None]
        self._hidden = torch.cat([none, prompt, own], dim=1)[:, None, None]

    def attend(
        self, layer: int, query: Float[Tensor, "row head share feature"], key: Tensor, value: Tensor
    ) -> Float[Tensor, "row head share feature"]:
        """Write one more column ``[row, head, 1, feature]`` and attend to all; queries must be scaled."""
        self._layers[layer].update(key, value)
        return self.attended(layer, query)

    def attended(self, layer: int, query: Float[Tensor, "row head share feature"]) -> Tensor:
        """Return attention over the common beginning, each row's prompt, and its own columns so far."""
        own = self._layers[layer]
        num_rows, num_heads, share, width = query.shape
        # Own tokens: one small product per row and head, all in one batched call, without a copy: rows and heads
        # are adjacent in [column, row, head, feature].
        keys, values = (
            each[: own.length].view(own.length, -1, each.shape[-1]).transpose(0, 1) for each in (own.keys, own.values)
        )
        shared = [self.prompts] if self._common is None else [self._common, self.prompts]
        parts = [prompts.scores(layer, query) for prompts in shared]
        parts.append(torch.bmm(query.reshape(-1, share, width), keys.mT).view(num_rows, num_heads, share, -1))
        scores = torch.cat(parts, dim=-1)  # [row, head, share, common + prompt + own columns]
        if self._hidden is not None:
            scores.masked_fill_(self._hidden, -torch.inf)
        # One softmax over all parts gives the weights that attention to the whole text would give.
        *weights, own_weights = torch.split(scores.softmax(dim=-1), [part.shape[-1] for part in parts], dim=-1)
        # The width of values is left to bmm: they may be narrower or wider than keys (latent attention).
        found = torch.bmm(own_weights.flatten(0, 1), values).view(num_rows, num_heads, share, -1)
        for prompts, part in zip(shared, weights, strict=True):
            found += prompts.weighted(layer, part)
        return found

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> None:
        """Drop all other rows, and the own columns that no remaining row uses; make room for ``room`` more."""
        self.start = self.start[rows]
        first = int(self.start.min())
        capacity = self.length - first + room
        self.prompts.keep(rows)
        if self._common is not None:
            self._common.keep(rows)
        for layer in self._layers:
            layer.keep(rows, first, capacity)
        self.start = self.start - first

    def join(self, other: SharedRows, room: int) -> None:
        """Append the rows of ``other``, a fresh prefill with the same common beginning, after this object's own."""
        # All rows write the same next column, so own tokens are aligned at their end, and starts move with them.
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        self.prompts.join(other.prompts)
        if self._common is not None:
            self._common = SharedPrompts(self._common.states, self._common.start, torch.zeros_like(self.start))
        for layer, other_layer in zip(self._layers, other._layers, strict=True):
            layer.join(other_layer, length + room)


def shares_prompts(loaded: LoadedModel) -> bool:
    """Return whether this model on this device can decode against shared prompts: declared by its class, then tried."""
    model = loaded.model
    plain = attention_in_use(model) == USUAL and takes_attention_functions(model)
    if model.device.type != "cpu" or model.dtype != torch.float32 or not plain:
        return False
    return agrees(loaded, lambda rows, token: rows.hidden(loaded, token))


def agrees(loaded: LoadedModel, hidden: Callable[[SharedRows, Tensor], Tensor]) -> bool:
    """Return whether a function that feeds rows their next token gives the model's own logits.

    Two members of a group are fed two tokens, and their logits are compared with those of the model on the whole text.
    A model that raises when it is fed like this disagrees: some keep states in their cache that only they can read.
    """
    try:
        return _gives_the_same(loaded, hidden)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _gives_the_same(loaded: LoadedModel, hidden: Callable[[SharedRows, Tensor], Tensor]) -> bool:
    model, head = loaded.model, loaded.head
    ids = probe_ids(model)
    context = ids.shape[1] - 2
    with probing(model), attending(model):
        expected = model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        head.hidden(input_ids=ids[:, :context], memory=cache, use_cache=True)
        rows = SharedRows(cache, torch.zeros(1, dtype=torch.long), group_size=2, room=2)
        worst = 0.0
        for column in (context, context + 1):
            token = ids[:, [column]].expand(2, 1)
            gap = head.logits(hidden(rows, token)[:, -1]) - expected[:, column]
            worst = max(worst, float(gap.abs().max()))
    return bool(worst <= torch.finfo(torch.float32).eps ** 0.5 * float(expected.abs().max()))


def _attention(
    module: Any,
    query: Float[Tensor, "row head token feature"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_rows: SharedRows | None = None,
    **usual: Any,
) -> tuple[Tensor, None]:
    """Attend in one layer, called by transformers; return ``[row, token, head, feature]``. A prefill attends as usual.

    ``key`` and ``value`` are the rows' own columns, which ``ColumnLayer.update`` has just returned.
    """
    if shared_rows is None:
        return usual_attention(USUAL)(module, query, key, value, attention_mask, **usual)  # type: ignore[no-any-return]
    num_rows, num_heads, _one, width = query.shape
    scaled = (query * usual["scaling"]).view(num_rows, key.shape[2], -1, width)
    return shared_rows.attended(module.layer_idx, scaled).reshape(num_rows, 1, num_heads, -1), None


register_attention(ATTENTION, _attention, masks_like=USUAL)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, a model attends to shared prompts where it is given some, and as usual elsewhere."""
    with with_attention(model, ATTENTION):
        yield

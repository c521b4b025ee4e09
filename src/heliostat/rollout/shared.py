"""Decoding against one copy of each prompt: the group's rows attend to it together, and to their own tokens apart.

    softmax over [common | prompt | own]: scores are made part by part, normalised once, and spent part by part

A decoding step is bound by reading keys and values. Here a prompt's are read once per group and never copied, so a step
reads ``P + G T`` positions for a group of ``G`` instead of ``G (P + T)``; and what all prompts begin with (a system
prompt, worked examples) is there once for all. Own tokens lie column by column, every row's token ``t`` next to the
others', which makes writing them one stream. The arithmetic is the model's own to rounding; models take it through
transformers' attention interface, or are run layer by layer (``rollout.fused``).

Left out: models that do not use that interface (``rollout.rows`` copies prompts for those), and GPUs, whose fused
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
from heliostat.rollout.rows import GrowingLayer, key_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "heliostat_shared_prompt"
"""What this attention is called among those of transformers."""

USUAL = "sdpa"
"""The attention it stands in for."""

MAX_DEAD_GROUPS = 0.25
"""Prompts whose rows have all ended stay until they are this share: dropping them copies all others."""


class ColumnLayer(GrowingLayer):  # type: ignore[no-untyped-call]  # transformers is partly untyped
    """One layer's own keys and values, ``[column, row, head, feature]``, with room for more columns.

    Args:
        like: keys and values of the prompts, ``[group, head, column, feature]``, for their shapes.
    """

    def __init__(self, like: tuple[Tensor, Tensor], num_rows: int, capacity: int) -> None:
        super().__init__(0)
        self.keys, self.values = (
            states.new_empty(capacity, num_rows, states.shape[1], states.shape[3]) for states in like
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one more column and return views of all so far (called by the attention layers)."""
        self.keys[self.length] = key_states[:, :, 0]
        self.values[self.length] = value_states[:, :, 0]
        self.length += 1
        return self.keys[: self.length], self.values[: self.length]

    def get_max_length(self) -> int:
        return int(self.keys.shape[0])

    def keep(self, rows: Int[Tensor, " kept"], first_column: int, capacity: int) -> None:
        """Keep only ``rows`` and the columns from ``first_column`` on."""
        self.keys = self._kept(self.keys, rows, first_column, capacity)
        self.values = self._kept(self.values, rows, first_column, capacity)
        self.length -= first_column

    def _kept(self, states: Tensor, rows: Int[Tensor, " kept"], first_column: int, capacity: int) -> Tensor:
        buffer = states.new_empty(capacity, len(rows), *states.shape[2:])
        torch.index_select(states[first_column : self.length], 1, rows, out=buffer[: self.length - first_column])
        return buffer

    def join(self, other: ColumnLayer, capacity: int) -> None:
        """Append the rows of ``other``, aligned at the last column; the gap before them is never attended to."""
        length = max(self.length, other.length)
        mine, theirs = self.length, other.length
        self.keys, self.values = (
            torch.cat([self._resized(a[:mine], length, capacity), self._resized(b[:theirs], length, capacity)], dim=1)
            for a, b in ((self.keys, other.keys), (self.values, other.values))
        )
        self.length = length

    @staticmethod
    def _resized(states: Tensor, length: int, capacity: int) -> Tensor:
        """The same columns, ending at ``length``, in a buffer of ``capacity`` columns.

        The gap is zeros, not uninitialised memory: a masked NaN would still poison the weighted sum over values.
        """
        buffer = states.new_zeros(capacity, *states.shape[1:])
        buffer[length - states.shape[0] : length] = states
        return buffer


class SharedPrompts:
    """The prompts' keys and values, once each, and where the live rows' queries go among them.

    Attributes:
        states: keys and values of every layer, ``[group, head, column, feature]``.
        start: first column of each prompt that holds a token (left padding).
        group: the prompt of each row, ascending.
    """

    def __init__(
        self, states: list[tuple[Tensor, Tensor]], start: Int[Tensor, " group"], group: Int[Tensor, " row"]
    ) -> None:
        self.states, self.start = states, start
        self._place(group)

    @property
    def length(self) -> int:
        """Columns of the prompts, padding included."""
        return int(self.states[0][0].shape[2])

    @property
    def row_lengths(self) -> Int[Tensor, " row"]:
        """Tokens of each row's prompt."""
        return self.length - self.start[self.group]

    def _place(self, group: Int[Tensor, " row"]) -> None:
        """Give every row a slot of its prompt: ``[group, slot]``, with holes where groups have ended unevenly."""
        counts = torch.bincount(group, minlength=len(self.start))
        alive = counts > 0
        if int(alive.sum()) < (1 - MAX_DEAD_GROUPS) * len(counts):
            self.states = [(keys[alive], values[alive]) for keys, values in self.states]
            self.start = self.start[alive]
            group = (alive.cumsum(0) - 1)[group]
            counts = counts[alive]
        self.group = group
        self.num_slots = int(counts.max())
        self._member = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]
        self._full = len(group) == len(counts) * self.num_slots

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self._place(self.group[rows])

    def join(self, other: SharedPrompts) -> None:
        """Take over the prompts and rows of ``other`` behind our own, aligned at the last column."""
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        self.states = [
            (_stacked(keys, other_keys, length), _stacked(values, other_values, length))
            for (keys, values), (other_keys, other_values) in zip(self.states, other.states, strict=True)
        ]
        self._place(torch.cat([self.group, other.group + len(self.start) - len(other.start)]))

    def scores(
        self, layer: int, query: Float[Tensor, "row head share feature"]
    ) -> Float[Tensor, "row head share column"]:
        """Products of each row's queries with its prompt's keys, ``share`` queries to every head of keys."""
        return self._of_groups(query, self.states[layer][0].transpose(2, 3))

    def weighted(
        self, layer: int, weights: Float[Tensor, "row head share column"]
    ) -> Float[Tensor, "row head share feature"]:
        """Sums of each row's prompt's values with these weights."""
        return self._of_groups(weights, self.states[layer][1])

    def _of_groups(self, rows: Float[Tensor, "row head share n"], matrix: Float[Tensor, "group head n m"]) -> Tensor:
        """One product per group and head, of all its rows together: ``[row, head, share, m]``."""
        _, num_heads, share, width = rows.shape
        shape = (len(self.start), num_heads, self.num_slots, share)
        if self._full:
            grid = rows.view(shape[0], self.num_slots, num_heads, share, width).transpose(1, 2)
        else:
            grid = rows.new_zeros(*shape, width)
            grid[self.group, :, self._member] = rows
        product = (grid.reshape(*shape[:2], -1, width) @ matrix).view(*shape, -1)
        return product.transpose(1, 2).flatten(0, 1) if self._full else product[self.group, :, self._member]


class SharedRows:
    """All live rows: what all have in common once, their prompts once per group, and their own tokens.

    Args:
        prefilled: the prompts' cache, ``num_common`` columns that are the same in all, then the rest of each.
        start: first column of each rest that holds a token.

    Attributes:
        start: first own column of each row.
        cache: what to pass to the model as ``past_key_values``.
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
        """Own columns in use."""
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
        """Feed every row its next token, inside ``attending``; the hidden states behind them."""
        self.hide_padding()
        return loaded.head.hidden(
            input_ids=token,
            attention_mask=torch.ones(self.num_rows, 1, 1, 1, dtype=torch.bool),  # given whole, so none is made
            position_ids=self.positions,
            memory=self.cache,
            use_cache=True,
            shared_rows=self,
        )

    def hide_padding(self) -> None:
        """Before a pass: mark the columns that hold no token of a row, in its prompt or before its own first."""
        if not (bool(self.start.any()) or bool(self.prompts.start.any())):
            self._hidden = None
            return
        columns = torch.arange(max(self.prompts.length, self.length + 1), device=self.start.device)
        none = columns.new_zeros(self.num_rows, self._num_common, dtype=torch.bool)
        prompt = columns[: self.prompts.length] < self.prompts.start[self.prompts.group][:, None]
        own = columns[: self.length + 1] < self.start[:, None]
        self._hidden = torch.cat([none, prompt, own], dim=1)[:, None, None]

    def attend(
        self, layer: int, query: Float[Tensor, "row head share feature"], key: Tensor, value: Tensor
    ) -> Float[Tensor, "row head share feature"]:
        """Write one more column ``[row, head, 1, feature]`` and attend to all; queries are scaled already."""
        self._layers[layer].update(key, value)
        return self.attended(layer, query)

    def attended(self, layer: int, query: Float[Tensor, "row head share feature"]) -> Tensor:
        """Attention over what all have in common, each row's prompt, and its own columns so far."""
        own = self._layers[layer]
        num_rows, num_heads, share, width = query.shape
        # One product per row and head: few and small, so what counts is that each is a single call.
        keys, values = (
            each[: own.length].view(own.length, -1, each.shape[-1]).transpose(0, 1) for each in (own.keys, own.values)
        )
        shared = [self.prompts] if self._common is None else [self._common, self.prompts]
        parts = [prompts.scores(layer, query) for prompts in shared]
        parts.append(torch.bmm(query.reshape(-1, share, width), keys.mT).view(num_rows, num_heads, share, -1))
        scores = torch.cat(parts, dim=-1)
        if self._hidden is not None:
            scores.masked_fill_(self._hidden, -torch.inf)
        *weights, own_weights = torch.split(scores.softmax(dim=-1), [part.shape[-1] for part in parts], dim=-1)
        # Values may be narrower or wider than keys (latent attention).
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
        """Take over the rows of ``other`` (a fresh prefill) behind our own; both have the same in common."""
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        self.prompts.join(other.prompts)
        if self._common is not None:
            self._common = SharedPrompts(self._common.states, self._common.start, torch.zeros_like(self.start))
        for layer, other_layer in zip(self._layers, other._layers, strict=True):
            layer.join(other_layer, length + room)


def shares_prompts(loaded: LoadedModel) -> bool:
    """Whether this model on this device decodes against shared prompts: declared by its class, then tried."""
    model = loaded.model
    plain = attention_in_use(model) == USUAL and takes_attention_functions(model)
    if model.device.type != "cpu" or model.dtype != torch.float32 or not plain:
        return False
    return agrees(loaded, lambda rows, token: rows.hidden(loaded, token))


def agrees(loaded: LoadedModel, hidden: Callable[[SharedRows, Tensor], Tensor]) -> bool:
    """Whether a way to feed rows their next token gives the model's own logits.

    Two members of a group are fed two tokens, and their logits compared with those of the model on the whole text. A
    model that fails when fed like this (some keep in their cache what only they can read) disagrees.
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


def _stacked(one: Float[Tensor, "group head column feature"], two: Tensor, length: int) -> Tensor:
    """Both prompts' states, padded on the left to ``length`` columns."""
    return torch.cat([torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in (one, two)])


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
    """What transformers calls in every layer; returns ``[row, token, head, feature]``. A prefill attends as usual.

    ``key`` and ``value`` are the rows' columns, written by transformers a moment ago.
    """
    if shared_rows is None:
        return usual_attention(USUAL)(module, query, key, value, attention_mask, **usual)  # type: ignore[no-any-return]
    num_rows, num_heads, _one, width = query.shape
    scaled = (query * usual["scaling"]).view(num_rows, key.shape[2], -1, width)
    return shared_rows.attended(module.layer_idx, scaled).reshape(num_rows, 1, num_heads, -1), None


register_attention(ATTENTION, _attention, masks_like=USUAL)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model attends the way of this file where it is given shared prompts, and as usual where not."""
    with with_attention(model, ATTENTION):
        yield

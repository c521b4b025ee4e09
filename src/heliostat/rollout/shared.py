"""Decoding against one copy of each prompt: the group's rows attend to it together, and to their own tokens apart.

    softmax over [prompt | own]  =  two softmaxes, merged by their normalisers

A decoding step is bound by reading keys and values. Here a prompt's are read once per group and never copied, so a step
reads ``P + G T`` positions for a group of ``G`` instead of ``G (P + T)``. Own tokens lie column by column, every row's
token ``t`` next to the others', which makes writing and reading them one stream. The arithmetic is the model's own to
rounding; models take it through transformers' attention interface.

Left out: models that do not use that interface (``rollout.rows`` copies prompts for those), and GPUs, whose fused
kernels are better served by one row each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from heliostat.models import LoadedModel
from heliostat.models.probes import probe_ids, probing
from heliostat.rollout.rows import GrowingLayer, key_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "heliostat_shared_prompt"
"""What this attention is called among those of transformers."""

USUAL = "sdpa"
"""The attention it stands in for."""

CHUNK_ELEMENTS = 2**18
"""Products alive at once while own tokens are scored (1 MiB in float32: stays in a core's cache)."""

MAX_DEAD_GROUPS = 0.25
"""Prompts whose rows have all ended stay until they are this share: dropping them copies all others."""


class ColumnLayer(GrowingLayer):  # type: ignore[no-untyped-call]  # transformers is partly untyped
    """One layer's own keys and values, ``[column, row, head, feature]``, with room for more columns."""

    def __init__(self, like: Float[Tensor, "group head column feature"], num_rows: int, capacity: int) -> None:
        super().__init__(0)
        # Zeros, not uninitialised memory: a masked NaN would still poison the weighted sum over values.
        self.keys = like.new_zeros(capacity, num_rows, like.shape[1], like.shape[3])
        self.values = torch.zeros_like(self.keys)
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
        columns = slice(first_column, self.length)
        self.length -= first_column
        self.keys = self._resized(self.keys[columns, rows], self.length, capacity)
        self.values = self._resized(self.values[columns, rows], self.length, capacity)

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
        """The same columns, ending at ``length``, in a buffer of ``capacity`` columns."""
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
        member = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]
        self._slot = None if len(group) == len(counts) * self.num_slots else group * self.num_slots + member
        columns = torch.arange(self.length, device=group.device)
        self._hidden = (columns < self.start[:, None])[:, None, None] if bool((self.start > 0).any()) else None

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

    def attend(self, layer: int, query: Float[Tensor, "row head share feature"]) -> Partial:
        """Each row's queries over its prompt, ``share`` of them to every head of keys."""
        keys, values = self.states[layer]
        _, num_heads, share, width = query.shape
        grouped = self._spread(query).transpose(1, 2).reshape(len(keys), num_heads, -1, width)
        scores = grouped @ keys.transpose(2, 3)
        if self._hidden is not None:
            scores.masked_fill_(self._hidden, -torch.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        parts = (top, weights.sum(dim=-1, keepdim=True), weights @ values)
        return Partial(
            *(self._gathered(part.reshape(len(keys), num_heads, self.num_slots, share, -1)) for part in parts)
        )

    def _spread(self, query: Tensor) -> Float[Tensor, "group slot head share feature"]:
        shape = (len(self.start), self.num_slots, *query.shape[1:])
        if self._slot is None:
            return query.view(shape)
        return query.new_zeros(shape[0] * shape[1], *shape[2:]).index_copy_(0, self._slot, query).view(shape)

    def _gathered(self, part: Float[Tensor, "group head slot share any"]) -> Float[Tensor, "row head share any"]:
        flat = part.transpose(1, 2).flatten(0, 1)
        return flat if self._slot is None else flat[self._slot]


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention over a part of the positions: its largest score, and the sums that a softmax would divide.

    Attributes:
        top: ``max score``.
        total: ``sum exp(score - top)``.
        weighted: ``sum exp(score - top) value``.
    """

    top: Float[Tensor, "row head share 1"]
    total: Float[Tensor, "row head share 1"]
    weighted: Float[Tensor, "row head share feature"]

    def merged(self, other: Partial) -> Float[Tensor, "row head share feature"]:
        """The softmax over both parts."""
        top = torch.maximum(self.top, other.top)
        mine, theirs = (self.top - top).exp_(), (other.top - top).exp_()
        total = self.total * mine + other.total * theirs
        return (self.weighted * mine).add_(other.weighted * theirs).div_(total)


def attend_to_columns(
    query: Float[Tensor, "row head share feature"],
    keys: Float[Tensor, "column row head feature"],
    values: Float[Tensor, "column row head feature"],
    hidden: Bool[Tensor, "column row"] | None,
) -> Partial:
    """Each row's queries over its own columns, as streams of products: one query per row leaves nothing to multiply."""
    num_columns = max(1, CHUNK_ELEMENTS // query.numel())
    queries = query.unsqueeze(0)
    scores = torch.cat([(queries * part.unsqueeze(3)).sum(-1, keepdim=True) for part in torch.split(keys, num_columns)])
    if hidden is not None:
        scores.masked_fill_(hidden[:, :, None, None, None], -torch.inf)
    top = scores.amax(dim=0)
    weights = scores.sub_(top).exp_()
    weighted = query.new_zeros(*query.shape[:-1], values.shape[-1])
    for weight, part in zip(torch.split(weights, num_columns), torch.split(values, num_columns), strict=True):
        if num_columns == 1:
            weighted.addcmul_(weight[0], part[0].unsqueeze(2))
        else:
            weighted += (weight * part.unsqueeze(3)).sum(0)
    return Partial(top, weights.sum(0), weighted)


class SharedRows:
    """All live rows: their prompts once per group, and their own tokens.

    Attributes:
        start: first own column of each row.
        cache: what to pass to the model as ``past_key_values``.
    """

    def __init__(self, prefilled: DynamicCache, start: Int[Tensor, " group"], group_size: int, room: int) -> None:
        states = [key_values(layer) for layer in prefilled.layers]
        num_rows = len(start) * group_size
        group = torch.arange(len(start), device=start.device).repeat_interleave(group_size)
        self.prompts = SharedPrompts(states, start, group)
        self.start = torch.zeros_like(group)
        self._layers = [ColumnLayer(keys, num_rows, room) for keys, _ in states]
        self.cache = Cache(layers=list(self._layers))

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
        return (self.prompts.row_lengths + self.length - self.start).unsqueeze(1)

    def hidden(self, loaded: LoadedModel, token: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token, inside ``attending``; the hidden states behind them."""
        columns = torch.arange(self.length + 1, device=self.start.device)[:, None]
        return loaded.head.hidden(
            input_ids=token,
            attention_mask=torch.ones(self.num_rows, 1, 1, 1, dtype=torch.bool),  # given whole, so none is made
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            shared_prompts=self.prompts,
            hidden_columns=columns < self.start if bool((self.start > 0).any()) else None,
        )

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> None:
        """Drop all other rows, and the own columns that no remaining row uses; make room for ``room`` more."""
        self.start = self.start[rows]
        first = int(self.start.min())
        capacity = self.length - first + room
        self.prompts.keep(rows)
        for layer in self._layers:
            layer.keep(rows, first, capacity)
        self.start = self.start - first

    def join(self, other: SharedRows, room: int) -> None:
        """Take over the rows of ``other`` (a fresh prefill) behind our own."""
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        self.prompts.join(other.prompts)
        for layer, other_layer in zip(self._layers, other._layers, strict=True):
            layer.join(other_layer, length + room)


def shares_prompts(loaded: LoadedModel) -> bool:
    """Whether this model on this device decodes against shared prompts: declared by its class, then tried.

    Two members of a group are fed two tokens, and their logits compared with the model's own on the whole text.
    """
    model, head = loaded.model, loaded.head
    plain = model.config.get_text_config()._attn_implementation == USUAL
    if model.device.type != "cpu" or model.dtype != torch.float32 or not (plain and model._supports_attention_backend):
        return False
    ids = probe_ids(model)
    context = ids.shape[1] - 2
    with probing(model), attending(model):
        expected = model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        head.hidden(input_ids=ids[:, :context], past_key_values=cache, use_cache=True)
        rows = SharedRows(cache, torch.zeros(1, dtype=torch.long), group_size=2, room=2)
        worst = 0.0
        for column in (context, context + 1):
            token = ids[:, [column]].expand(2, 1)
            gap = head.logits(rows.hidden(loaded, token)[:, -1]) - expected[:, column]
            worst = max(worst, float(gap.abs().max()))
    return bool(worst <= torch.finfo(torch.float32).eps ** 0.5 * float(expected.abs().max()))


def _stacked(one: Float[Tensor, "group head column feature"], two: Tensor, length: int) -> Tensor:
    """Both prompts' states, padded on the left to ``length`` columns."""
    return torch.cat([torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in (one, two)])


def _attention(
    module: Any,
    query: Float[Tensor, "row head 1 feature"],
    key: Float[Tensor, "column row shared_head feature"],
    value: Float[Tensor, "column row shared_head feature"],
    attention_mask: Tensor | None,
    *,
    shared_prompts: SharedPrompts | None = None,
    hidden_columns: Bool[Tensor, "column row"] | None = None,
    **usual: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; returns ``[row, 1, head, feature]``. A prefill attends as usual."""
    if shared_prompts is None:
        return ALL_ATTENTION_FUNCTIONS[USUAL](module, query, key, value, attention_mask, **usual)  # type: ignore[no-any-return]
    num_rows, num_heads, _one, width = query.shape
    scaled = (query * usual["scaling"]).view(num_rows, key.shape[2], -1, width)
    own = attend_to_columns(scaled, key, value, hidden_columns)
    merged = shared_prompts.attend(module.layer_idx, scaled).merged(own)
    return merged.reshape(num_rows, 1, num_heads, -1), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS[USUAL])


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model attends the way of this file where it is given shared prompts, and as usual where not."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual

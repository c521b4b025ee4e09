"""Decoding against one copy of each prompt: the rows of a group attend to it together, and to their own tokens apart.

    softmax over [common | prompt | own]: scores part by part, one softmax over all of them, values part by part

A row is one completion that is being decoded. A decoding step is bound by reading keys and values. Here the keys and
values of a prompt are read once per group and never copied: a step reads ``P + G T`` positions for a group of ``G``
completions with ``T`` tokens each behind ``P`` prompt tokens, instead of ``G (P + T)``. The beginning that all prompts
share (a system prompt, worked examples) is stored once for all.

    what                    class           layout of keys and values, per layer
    all prompts' beginning  SharedPrompts   [1, head, column, feature]
    each prompt's rest      SharedPrompts   [group, head, column, feature], padded on the left
    each row's own tokens   OwnLayer        [row, head, column, feature], each row from column 0 on

Rows are fed one token each, or a chunk of several: an environment's answer to a turn. The arithmetic is the model's own
to rounding.
Models reach it through transformers' attention interface, or are run layer by layer (``in_process.fused``).

Left out: models that do not use that interface (``in_process.rows`` copies prompts for those), and GPUs, whose fused
kernels are better served by one row each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from heliostat.models import LoadedModel
from heliostat.models.architecture_probes import probe_ids, probing
from heliostat.models.transformers_internals import (
    has_usual_attention,
    register_attention,
    usual_attention,
    with_attention,
)
from heliostat.rollout.in_process.own_tokens import Ends, Moves, OwnLayer
from heliostat.rollout.in_process.rows import key_values
from heliostat.rollout.in_process.shared_prompts import SharedPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "heliostat_shared_prompt"
"""The name of this attention in transformers' registry."""

DTYPES = (torch.float32, torch.bfloat16)
"""Of weights. Keys, values and attention are in float32 in any case."""


class SharedRows:
    """All live rows: the common beginning once, their prompts once per group, and their own tokens.

    Args:
        prefilled: the prompts' cache: ``num_common`` columns that are the same in all, then the rest of each prompt.
        start: first column of each rest that holds a token.
        room: columns to allocate for the rows' own tokens.

    Attributes:
        ends: the number of each row's own tokens.
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
        # In float32 whatever the weights are: small products are as fast in it, and scores need its digits.
        states = [(keys.float(), values.float()) for keys, values in map(key_values, prefilled.layers)]
        group = torch.arange(len(start), device=start.device).repeat_interleave(group_size)
        self._num_common = num_common
        self._common = None
        if num_common:
            # Clones, since views would keep the whole prefill in memory.
            common = [(keys[:1, :, :num_common].clone(), values[:1, :, :num_common].clone()) for keys, values in states]
            self._common = SharedPrompts(common, start.new_zeros(1), torch.zeros_like(group))
            states = [(keys[:, :, num_common:].clone(), values[:, :, num_common:].clone()) for keys, values in states]
        self.prompts = SharedPrompts(states, start, group)
        self.ends = Ends(torch.zeros_like(group))
        self._set([OwnLayer.like(keys_and_values, self.ends, room) for keys_and_values in states])
        self._hidden: Tensor | None = None

    def _set(self, layers: list[OwnLayer]) -> None:
        self._layers = layers
        self.cache = Cache(layers=list(layers))

    @property
    def num_rows(self) -> int:
        return len(self.ends.count)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """The number of tokens in each row's cache, its prompt included."""
        return self._num_common + self.prompts.row_lengths + self.ends.count

    def hidden(
        self, loaded: LoadedModel, token: Int[Tensor, "row new"], real: Bool[Tensor, "row new"] | None = None
    ) -> Float[Tensor, "row new feature"]:
        """Feed every row its next tokens, inside ``attending``, and return the hidden states after each."""
        positions = self.begin_pass(torch.ones_like(token, dtype=torch.bool) if real is None else real)
        return loaded.head.hidden(
            input_ids=token,
            # Not used: padding is masked below. A mask of four dimensions keeps transformers from building its own.
            attention_mask=torch.ones(self.num_rows, 1, 1, 1, dtype=torch.bool, device=token.device),
            position_ids=positions,
            memory=self.cache,
            use_cache=True,
            shared_rows=self,
        )

    def begin_pass(self, real: Bool[Tensor, "row new"]) -> Int[Tensor, "row new"]:
        """Prepare a pass over new columns, and return the positions of their tokens.

        Args:
            real: which of the new columns hold a token of each row.
        """
        num_new = real.shape[1]
        known = self._num_common + self.prompts.row_lengths
        positions = known[:, None] + self.ends.extend(real)
        self._hidden = None
        if self.ends.are_uneven or self.prompts.have_gaps:
            # In the order of the scores: common beginning (never padded), prompt, own columns with the new ones.
            numbers = torch.arange(self.prompts.length, device=real.device)
            common = real.new_zeros(self.num_rows, self._num_common)
            prompt = numbers < self.prompts.start[self.prompts.group][:, None]
            given = torch.cat([common, prompt], dim=1)[:, None].expand(-1, num_new, -1)
            self._hidden = torch.cat([given, self.ends.hidden()], dim=2)[:, None, None]
        return positions

    def attend(
        self, layer: int, query: Float[Tensor, "row head share feature"], key: Tensor, value: Tensor
    ) -> Float[Tensor, "row head share feature"]:
        """Write one more token ``[row, head, 1, feature]`` and attend to all; see ``attended``."""
        self._layers[layer].update(key, value)
        return self.attended(layer, query)

    def attended(self, layer: int, query: Float[Tensor, "row head query feature"]) -> Tensor:
        """Return attention over the common beginning, each row's prompt, and its own columns so far.

        Args:
            query: in float32 and scaled; for every key head, its ``share`` query heads; of a chunk, each with one query
                per token.
        """
        num_rows, num_heads, num_queries, width = query.shape
        # Own tokens: one small product per row and head, all in one batched call on views.
        keys, values = (states.flatten(0, 1) for states in self._layers[layer].used())
        shared = [self.prompts] if self._common is None else [self._common, self.prompts]
        parts = [prompts.scores(layer, query) for prompts in shared]
        parts.append(
            torch.bmm(query.reshape(-1, num_queries, width), keys.mT).view(num_rows, num_heads, num_queries, -1)
        )
        scores = torch.cat(parts, dim=-1)  # [row, head, query, common + prompt + own columns]
        if self._hidden is not None:
            num_new = self._hidden.shape[3]
            scores.view(num_rows, num_heads, -1, num_new, scores.shape[-1]).masked_fill_(self._hidden, -torch.inf)
        # One softmax over all parts gives the weights that attention to the whole text would give.
        *weights, own_weights = torch.split(scores.softmax(dim=-1), [part.shape[-1] for part in parts], dim=-1)
        # The width of values is left to bmm: they may be narrower or wider than keys (latent attention).
        found = torch.bmm(own_weights.flatten(0, 1), values).view(num_rows, num_heads, num_queries, -1)
        for prompts, part in zip(shared, weights, strict=True):
            found += prompts.weighted(layer, part)
        return found

    def taken(self, rows: Int[Tensor, " kept"]) -> Self:
        """Return these rows alone; prompts are shared with this object."""
        other = copy.copy(self)
        self.prompts.may_drop = False
        other.prompts = self.prompts.taken(rows)
        other._common = None if self._common is None else self._common.taken(rows)
        other.ends = Ends(self.ends.count[rows])
        other._set([layer.taken(rows, other.ends) for layer in self._layers])
        return other

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> list[int]:
        """Drop all other rows, and make room for ``room`` more columns; return the kept ones in their new order."""
        moves = Moves.to_keep(rows)
        self.prompts.keep(moves.order)
        self._change(moves, [], room)
        return [int(row) for row in moves.order]

    def join(self, other: Self, room: int) -> None:
        """Append the rows of ``other``, a fresh prefill with the same common beginning, after this object's own."""
        self.prompts.join(other.prompts)
        self._append([other], room)

    def reunite(self, others: Sequence[Self], room: int, complete: bool) -> None:
        """Append rows that were ``taken`` apart, of the same prompts."""
        self.prompts.may_drop = complete  # other rows of the same prompts come back to them
        self.prompts.place(torch.cat([self.prompts.group, *(other.prompts.group for other in others)]))
        self._append(others, room)

    def _append(self, others: Sequence[Self], room: int) -> None:
        everyone = torch.arange(self.num_rows, device=self.ends.count.device)
        self._change(Moves.to_keep(everyone), others, room)

    def _change(self, moves: Moves, others: Sequence[Self], room: int) -> None:
        """Keep own tokens of some rows and append those of ``others``; ``prompts`` know of it already."""
        ends = Ends(torch.cat([self.ends.count[moves.order], *(other.ends.count for other in others)]))
        if self._common is not None:
            self._common = SharedPrompts(self._common.states, self._common.start, torch.zeros_like(ends.count))
        for index, layer in enumerate(self._layers):
            layer.change(moves, [other._layers[index] for other in others], ends, room)
        self.ends = ends


def shares_prompts(loaded: LoadedModel) -> bool:
    """Return whether this model on this device can decode against shared prompts: declared by its class, then tried."""
    model = loaded.model
    if model.device.type != "cpu" or model.dtype not in DTYPES or not has_usual_attention(model):
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
    return bool(worst <= torch.finfo(model.dtype).eps ** 0.5 * float(expected.abs().max()))


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

    ``key`` and ``value`` are the rows' own columns, which ``OwnLayer.update`` has just returned.
    """
    if shared_rows is None:
        return usual_attention(module, query, key, value, attention_mask, **usual)
    num_rows, num_heads, num_new, width = query.shape
    # The query heads that share a key head lie next to each other; of a chunk, so do the tokens of one head.
    scaled = (query.float() * usual["scaling"]).reshape(num_rows, key.shape[1], -1, width)
    found = shared_rows.attended(module.layer_idx, scaled).reshape(num_rows, num_heads, num_new, -1)
    return found.transpose(1, 2).to(query.dtype), None


register_attention(ATTENTION, _attention)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, a model attends to shared prompts where it is given some, and as usual elsewhere."""
    with with_attention(model, ATTENTION):
        yield

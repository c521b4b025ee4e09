"""Key/value rows for decoding, to which sequences are added and from which they are dropped.

Every live sequence is one row of a preallocated buffer per layer. All rows are written at the same columns, and the
attention mask hides columns that hold no token of a row (``columns``): shorter prompts start later. Positions are the
tokens' true positions, hence independent of columns. Rows are dropped when a sequence ends and added when the next
prompt is prefilled. Rows that wait for an environment leave with their columns and come back (``taken``, ``join``).

Left out: models whose cache is not plain keys and values (``in_process.plain`` decodes those), and sampling.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from heliostat.models import LoadedModel
from heliostat.models.transformers_internals import CacheLayerMixin, num_queries
from heliostat.rollout.in_process.columns import Columns


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers is partly untyped
    """One layer's keys and values, in buffers with room for more columns than are in use; subclasses lay them out."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there from the beginning."""

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.length + num_queries(query_length), 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_cache_shape(self) -> int:
        """``get_max_length`` as transformers called it before 5.16."""
        return int(self.get_max_length())


class RowLayer(GrowingLayer):  # type: ignore[no-untyped-call]  # as above
    """One layer's keys and values, ``[row, head, column, feature]``, with room to grow to the right."""

    def __init__(self, keys: Float[Tensor, "row head column feature"], values: Tensor, capacity: int) -> None:
        super().__init__(keys.shape[2])
        self.keys = self._with_capacity(keys, capacity)
        self.values = self._with_capacity(values, capacity)
        self.is_initialized = True

    @staticmethod
    def _with_capacity(states: Tensor, capacity: int) -> Tensor:
        rows, heads, length, features = states.shape
        buffer = states.new_empty(rows, heads, capacity, features)
        buffer[:, :, :length] = states
        return buffer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns and return views of everything so far (called by the attention layers)."""
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    def taken(self, rows: Int[Tensor, " kept"], columns: slice | Tensor, room: int) -> RowLayer:
        """Return a layer of these rows and columns, with room for more columns."""
        keys, values = (each[rows, :, : self.length][:, :, columns] for each in (self.keys, self.values))
        return RowLayer(keys, values, keys.shape[2] + room)

    def join(self, other: RowLayer, capacity: int) -> None:
        """Append the rows of ``other``, aligned at the right end; the gap on the left is never attended to."""
        length = max(self.length, other.length)
        self.keys = self._joined(self.keys, self.length, other.keys, other.length, length, capacity)
        self.values = self._joined(self.values, self.length, other.values, other.length, length, capacity)
        self.length = length

    @staticmethod
    def _joined(one: Tensor, one_length: int, two: Tensor, two_length: int, length: int, capacity: int) -> Tensor:
        split = one.shape[0]
        # Zeros, not uninitialised memory: a masked NaN would still poison the weighted sum over values.
        buffer = one.new_zeros(split + two.shape[0], one.shape[1], capacity, one.shape[3])
        buffer[:split, :, length - one_length : length] = one[:, :, :one_length]
        buffer[split:, :, length - two_length : length] = two[:, :, :two_length]
        return buffer


def key_values(layer: object) -> tuple[Tensor, Tensor]:
    """Return a filled cache layer's keys and values, which transformers types as optional."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    assert isinstance(keys, Tensor)
    assert isinstance(values, Tensor)
    return keys, values


class LiveRows(Protocol):
    """Sequences that are decoded together; all ways of storing them give the same numbers to rounding."""

    @property
    def num_rows(self) -> int: ...

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """The number of tokens in each row's cache, its prompt included."""
        ...

    def hidden(
        self, loaded: LoadedModel, token: Int[Tensor, "row new"], real: Bool[Tensor, "row new"] | None = None
    ) -> Float[Tensor, "row new feature"]:
        """Feed every row its next tokens and return the hidden states after each.

        Args:
            real: which of them are tokens; the others are padding. Default: all.
        """
        ...

    def taken(self, rows: Int[Tensor, " kept"]) -> Self:
        """Return these rows alone; prompts may be shared with this object."""
        ...

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> list[int]:
        """Drop all other rows; make room for ``room`` more columns.

        Returns:
            The kept rows, in the order in which this object now has them.
        """
        ...

    def join(self, other: Self, room: int) -> None:
        """Append the rows of ``other``, a fresh prefill, after this object's own."""
        ...

    def reunite(self, others: Sequence[Self], room: int, complete: bool) -> None:
        """Append rows that were ``taken`` apart from this object; make room for ``room`` more columns.

        Args:
            others: objects that hold other rows of the same prefill.
            complete: whether no further object holds rows of this prefill.
        """
        ...


class Rows:
    """All live rows of all layers.

    Args:
        start: first column of each prompt that holds a token.

    Attributes:
        columns: the columns that hold tokens, of prompts too.
        cache: the cache to pass to the model as ``past_key_values``.
    """

    def __init__(self, prefilled: DynamicCache, start: Int[Tensor, " group"], group_size: int, room: int) -> None:
        length = prefilled.get_seq_length()
        prefilled.batch_repeat_interleave(group_size)
        numbers = torch.arange(length, device=start.device)
        self.columns = Columns(numbers[None] >= start.repeat_interleave(group_size)[:, None])
        self._set([RowLayer(*key_values(layer), capacity=length + room) for layer in prefilled.layers])

    def _set(self, layers: list[RowLayer]) -> None:
        self._layers = layers
        self.cache = Cache(layers=list(layers))

    @property
    def num_rows(self) -> int:
        return len(self.columns.count)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """The number of tokens in each row's cache, its prompt included."""
        return self.columns.count

    def mask(self, num_new: int) -> Tensor:
        """Return the mask of the columns that each row's last tokens attend to, ``[row, 1, new, column]``."""
        return self.columns.visible(num_new)[:, None]

    def hidden(
        self, loaded: LoadedModel, token: Int[Tensor, "row new"], real: Bool[Tensor, "row new"] | None = None
    ) -> Float[Tensor, "row new feature"]:
        """Feed every row its next tokens and return the hidden states after each."""
        positions = self.columns.extend(torch.ones_like(token, dtype=torch.bool) if real is None else real)
        return loaded.head.hidden(
            input_ids=token,
            attention_mask=self.mask(token.shape[1]),
            position_ids=positions,
            memory=self.cache,
            use_cache=True,
        )

    def taken(self, rows: Int[Tensor, " kept"]) -> Self:
        """Return these rows alone."""
        other = copy.copy(self)
        other.columns = copy.copy(self.columns)
        columns = other.columns.keep(rows)
        other._set([layer.taken(rows, columns, room=0) for layer in self._layers])
        return other

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> list[int]:
        """Drop all other rows, and the columns that no remaining row uses; make room for ``room`` more columns."""
        columns = self.columns.keep(rows)
        for index, layer in enumerate(self._layers):  # one after the other: two copies of all would be alive at once
            self._layers[index] = layer.taken(rows, columns, room)
            self.cache.layers[index] = self._layers[index]
        return [int(row) for row in rows]

    def join(self, other: Self, room: int) -> None:
        """Append the rows of ``other`` after this object's own."""
        self.columns.join(other.columns)
        for layer, other_layer in zip(self._layers, other._layers, strict=True):
            layer.join(other_layer, self.columns.length + room)

    def reunite(self, others: Sequence[Self], room: int, complete: bool) -> None:
        """Append rows that were ``taken`` apart."""
        for other in others:
            self.join(other, room)


class PaddedRows(Rows):
    """Rows for models that build their masks themselves, given the columns that hold tokens."""

    def mask(self, num_new: int) -> Tensor:
        """Return the columns that hold tokens of a row, the new ones included, ``[row, column]``."""
        return self.columns.held.long()

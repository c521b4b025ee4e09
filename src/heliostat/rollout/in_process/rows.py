"""Key/value rows for decoding, to which sequences are added and from which they are dropped.

Every live sequence is one row of a preallocated buffer per layer. All rows are written at the same column; a row's
tokens end at that column and start at its own ``start``, so shorter prompts simply start later (left padding) and the
attention mask hides what is before ``start``. Positions are the tokens' true positions, hence independent of columns.
Rows are dropped when a sequence ends and added when the next prompt is prefilled.

Left out: models whose cache is not plain keys and values (``in_process.plain`` decodes those), and sampling.
"""

from __future__ import annotations

from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from heliostat.models import LoadedModel
from heliostat.models.transformers_internals import CacheLayerMixin, num_queries


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

    def keep(self, rows: Int[Tensor, " kept"], first_column: int, capacity: int) -> None:
        """Keep only ``rows`` and the columns from ``first_column`` on."""
        self.keys = self._with_capacity(self.keys[rows, :, first_column : self.length], capacity)
        self.values = self._with_capacity(self.values[rows, :, first_column : self.length], capacity)
        self.length -= first_column

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

    start: Int[Tensor, " row"]

    @property
    def num_rows(self) -> int: ...

    @property
    def num_attended(self) -> int:
        """Positions that the next tokens of all rows attend to, themselves included."""
        ...

    def hidden(self, loaded: LoadedModel, token: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token and return the hidden states after it."""
        ...

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> None:
        """Drop all other rows; make room for ``room`` more columns."""
        ...

    def join(self, other: Self, room: int) -> None:
        """Append the rows of ``other``, a fresh prefill, after this object's own."""
        ...


class Rows:
    """All live rows of all layers, with each row's first column and next position.

    Attributes:
        start: first column of each row that holds a token.
        cache: the cache to pass to the model as ``past_key_values``.
    """

    def __init__(self, prefilled: DynamicCache, start: Int[Tensor, " group"], group_size: int, room: int) -> None:
        length = prefilled.get_seq_length()
        prefilled.batch_repeat_interleave(group_size)
        self.start = start.repeat_interleave(group_size)
        self._layers = [RowLayer(*key_values(layer), capacity=length + room) for layer in prefilled.layers]
        self.cache = Cache(layers=list(self._layers))

    @property
    def length(self) -> int:
        """The number of columns in use."""
        return self._layers[0].length

    @property
    def num_rows(self) -> int:
        return int(self.start.shape[0])

    @property
    def positions(self) -> Int[Tensor, "row 1"]:
        """The position of the token that each row is fed next."""
        return (self.length - self.start).unsqueeze(1)

    @property
    def num_attended(self) -> int:
        """Positions that the next tokens of all rows attend to, themselves included."""
        return self.num_rows * (self.length + 1) - int(self.start.sum())

    @property
    def mask(self) -> Tensor:
        """The mask of the columns that each row's next token attends to, ``[row, 1, 1, column]``, used as it is."""
        columns = torch.arange(self.length + 1, device=self.start.device)
        return (columns[None, :] >= self.start[:, None])[:, None, None, :]

    def hidden(self, loaded: LoadedModel, token: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 feature"]:
        """Feed every row its next token and return the hidden states after it."""
        return loaded.head.hidden(
            input_ids=token,
            attention_mask=self.mask,
            position_ids=self.positions,
            memory=self.cache,
            use_cache=True,
        )

    def keep(self, rows: Int[Tensor, " kept"], room: int) -> None:
        """Drop all other rows, and the columns that no remaining row uses; make room for ``room`` more columns."""
        self.start = self.start[rows]
        first = int(self.start.min())
        capacity = self.length - first + room
        for layer in self._layers:
            layer.keep(rows, first, capacity)
        self.start = self.start - first

    def join(self, other: Rows, room: int) -> None:
        """Append the rows of ``other``, a fresh prefill, after this object's own."""
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        for layer, other_layer in zip(self._layers, other._layers, strict=True):
            layer.join(other_layer, length + room)


class PaddedRows(Rows):
    """Rows for models that build their masks themselves, given the columns that hold tokens."""

    @property
    def mask(self) -> Tensor:
        """The mask of the columns that hold tokens of a row, the next one included, ``[row, column]``."""
        columns = torch.arange(self.length + 1, device=self.start.device)
        return (columns[None, :] >= self.start[:, None]).long()

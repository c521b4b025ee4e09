"""The keys and values of rows' own tokens: each row's from column 0 on, so rows of any lengths lie side by side.

    row 0   a b c d . .
    row 1   a b . . . .        the next token of each row goes to its own end; the columns behind it are hidden
    row 2   a b c . . .

A row of one head lies in one piece of memory, which one small product reads from end to end.

Left out: prompts (``shared_prompts``), and attention over both (``shared``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heliostat.rollout.in_process.rows import GrowingLayer


class Ends:
    """The number of each row's own tokens, and the places of those that the current pass adds.

    Attributes:
        count: own tokens of each row, with those of the current pass.
        length: columns in use: the largest count.
        before: own tokens before each token of the current pass (padding: before the next token), ``[row, new]``.
    """

    def __init__(self, count: Int[Tensor, " row"]) -> None:
        self.count = count
        self.length = int(count.max()) if len(count) else 0
        self.before = count[:, None][:, :0]
        self._began = self.length
        self._new: tuple[Tensor, ...] | None = None

    def extend(self, real: Bool[Tensor, "row new"]) -> Int[Tensor, "row new"]:
        """Begin a pass over new tokens, and return ``before``.

        Args:
            real: which of them are tokens; the others are padding, and written nowhere.
        """
        self._began = began = self.length
        self.before = self.count[:, None] + real.cumsum(dim=1) - real.long()
        is_even = bool(real.all()) and int(self.count.sum()) == began * len(self.count)
        self.count = self.count + real.sum(dim=1)
        self.length = began + real.shape[1] if is_even else int(self.count.max())
        # All rows end at the same column: the new columns are one slice.
        self._new = None if is_even else tuple(real.nonzero().T)
        return self.before

    @property
    def are_uneven(self) -> bool:
        """Whether the tokens of the current pass do not all stand in the last column in use."""
        return self._new is not None or self.before.shape[1] > 1

    def write(
        self, states: Float[Tensor, "row head new feature"], buffer: Float[Tensor, "slot head column feature"]
    ) -> None:
        """Write the new tokens' states to their places."""
        fresh = buffer[: len(states), :, self._began : self.length]
        if self._new is None:
            fresh.copy_(states)
        else:
            # Zeros, not uninitialised memory: a hidden NaN would still poison the weighted sum over values.
            fresh.zero_()
            rows, new = self._new
            buffer[rows, :, self.before[rows, new]] = states[rows, :, new].to(buffer.dtype)

    def hidden(self) -> Bool[Tensor, "row new column"]:
        """Return which columns each token of the current pass does not see: those behind itself."""
        return torch.arange(self.length, device=self.before.device) > self.before[:, :, None]


class OwnLayer(GrowingLayer):  # type: ignore[no-untyped-call]  # transformers is partly untyped
    """One layer's own keys and values, ``[slot, head, column, feature]``: live rows in the first slots, then free ones.

    A row that leaves frees its slot for the last one, and a row that comes takes a free slot, so the others stay where
    they are. Buffers are replaced only where slots or columns run out.

    Args:
        keys: a buffer; so is ``values``.
        ends: the ends of the rows, the same object in all layers.
    """

    def __init__(self, keys: Tensor, values: Tensor, ends: Ends) -> None:
        super().__init__(ends.length)
        self.keys, self.values, self.ends = keys, values, ends
        self.is_initialized = True

    @classmethod
    def like(cls, states: tuple[Tensor, Tensor], ends: Ends, room: int) -> OwnLayer:
        """Return an empty layer with the heads and widths of these keys and values."""
        keys, values = (each.new_empty(len(ends.count), each.shape[1], room, each.shape[3]) for each in states)
        return cls(keys, values, ends)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens, and return the columns in use (called by the attention layers)."""
        self.ends.write(key_states, self.keys)
        self.ends.write(value_states, self.values)
        self.length = self.ends.length
        return self.used()

    def used(self) -> tuple[Tensor, Tensor]:
        """Return the rows and columns in use of keys and values."""
        rows, columns = len(self.ends.count), self.ends.length
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    def taken(self, rows: Int[Tensor, " kept"], ends: Ends) -> OwnLayer:
        """Return a layer with a copy of these rows."""
        keys, values = (states[rows, :, : ends.length] for states in (self.keys, self.values))
        return OwnLayer(keys, values, ends)

    def change(self, moves: Moves, others: Sequence[OwnLayer], ends: Ends, room: int) -> None:
        """Move rows to the slots of rows that leave, append those of ``others``, and make room for more columns."""
        began = self.ends.length
        self.keys = _changed(self.keys, began, moves, [(each.keys, each.ends) for each in others], ends, room)
        self.values = _changed(self.values, began, moves, [(each.values, each.ends) for each in others], ends, room)
        self.ends, self.length = ends, ends.length


@dataclass(frozen=True, slots=True)
class Moves:
    """Rows that move to lower slots, those of rows that leave.

    Attributes:
        source: slots of the rows that move; so many as ``target``.
        order: the former slot of each row that stays, by its slot from now on.
    """

    source: Int[Tensor, " moved"]
    target: Int[Tensor, " moved"]
    order: Int[Tensor, " kept"]

    @classmethod
    def to_keep(cls, rows: Int[Tensor, " kept"]) -> Moves:
        """Return the fewest moves that bring these rows to the first slots."""
        num = len(rows)
        order = torch.arange(num, device=rows.device)
        stay = rows < num
        is_free = torch.ones_like(stay)
        is_free[rows[stay]] = False
        source, target = rows[~stay], is_free.nonzero().squeeze(1)
        order[target] = source
        return cls(source, target, order)


def _changed(
    buffer: Float[Tensor, "slot head column feature"],
    began: int,
    moves: Moves,
    others: Sequence[tuple[Tensor, Ends]],
    ends: Ends,
    room: int,
) -> Tensor:
    """Apply ``moves`` to one buffer with ``began`` columns in use and append rows; return it, or a larger one."""
    num_kept, num_rows = len(moves.order), len(ends.count)
    if len(moves.source):
        buffer[moves.target, :, :began] = buffer[moves.source, :, :began]
    slots, _, capacity, _ = buffer.shape
    if num_rows > slots or ends.length + room > capacity:
        larger = buffer.new_empty(max(num_rows, slots), buffer.shape[1], ends.length + room, buffer.shape[3])
        kept = min(began, larger.shape[2])
        larger[:num_kept, :, :kept] = buffer[:num_kept, :, :kept]
        buffer = larger
    if others:
        buffer[:num_kept, :, began : ends.length] = 0.0  # see Ends.write
    first = num_kept
    for states, theirs in others:
        there = buffer[first : first + len(theirs.count)]
        there[:, :, : theirs.length] = states[: len(theirs.count), :, : theirs.length]
        there[:, :, theirs.length : ends.length] = 0.0
        first += len(theirs.count)
    return buffer

"""The columns of a key/value buffer: which of them hold a token of which row. The rest is padding.

All rows of a batch write the same next columns. A row that has no token there (it began later, or its part of a chunk
is shorter) leaves a gap, which no token attends to. Positions count a row's own tokens, so gaps do not shift them.

Left out: the buffers themselves (``rows``, ``shared``).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Columns:
    """The columns in use of one buffer.

    Args:
        held: whether a column holds a token of a row.

    Attributes:
        count: tokens of each row.
    """

    def __init__(self, held: Bool[Tensor, "row column"]) -> None:
        self.held = held
        self.count: Int[Tensor, " row"] = held.sum(dim=1)

    @property
    def length(self) -> int:
        """The number of columns in use."""
        return int(self.held.shape[1])

    @property
    def have_gaps(self) -> bool:
        """Whether some column holds no token of some row."""
        return int(self.count.sum()) < self.held.numel()

    def extend(self, real: Bool[Tensor, "row new"]) -> Int[Tensor, "row new"]:
        """Append columns; return the number of the row's own tokens before each (padding: before the next token)."""
        before = self.count[:, None] + real.cumsum(dim=1) - real.long()
        self.held = torch.cat([self.held, real], dim=1)
        self.count = self.count + real.sum(dim=1)
        return before

    def keep(self, rows: Int[Tensor, " kept"]) -> slice | Int[Tensor, " column"]:
        """Drop all other rows, and the columns that no remaining row uses; return the columns that stay."""
        held = self.held[rows]
        used = held.any(dim=0)
        first = int(used.long().argmax()) if self.length else 0
        # A slice where it suffices: taking it copies nothing.
        stays = slice(first, None) if bool(used[first:].all()) else used.nonzero().squeeze(1)
        self.held, self.count = held[:, stays], self.count[rows]
        return stays

    def join(self, other: Columns) -> None:
        """Append the rows of ``other``, aligned at the last column."""
        length = max(self.length, other.length)
        padded = [torch.nn.functional.pad(each.held, (length - each.length, 0)) for each in (self, other)]
        self.held, self.count = torch.cat(padded), torch.cat([self.count, other.count])

    def visible(self, num_new: int) -> Bool[Tensor, "row new column"]:
        """Return the mask of the last ``num_new`` columns' queries: the tokens of their row up to themselves."""
        past = torch.ones(num_new, num_new, dtype=torch.bool, device=self.held.device).tril()
        before = past.new_ones(num_new, self.length - num_new)
        return self.held[:, None] & torch.cat([before, past], dim=1)

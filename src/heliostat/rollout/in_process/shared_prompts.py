"""Keys and values of prompts for decoding: once each, whatever the number of rows behind them.

Left out: rows' own tokens (``own_tokens``), and attention over all parts (``shared``, which also lists the layouts).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_DEAD_GROUPS = 0.25
"""Prompts whose rows have all ended are dropped once they are this share: dropping some copies all others."""


class SharedPrompts:
    """The keys and values of prompts, once each, and the assignment of live rows to them.

    For one batched product per layer, the rows' queries are arranged as a grid ``[group, slot]``: a row's slot is its
    place among the live rows of its group, and ``num_slots`` is the size of the largest group. Where groups have ended
    unevenly the grid has holes, filled with zeros.

    Attributes:
        states: keys and values of every layer, ``[group, head, column, feature]``.
        start: first column of each prompt that holds a token (left padding).
        group: the prompt of each row.
        may_drop: whether prompts without rows may be dropped; not while rows elsewhere come back to them.
    """

    def __init__(
        self,
        states: list[tuple[Tensor, Tensor]],
        start: Int[Tensor, " group"],
        group: Int[Tensor, " row"],
        may_drop: bool = True,
    ) -> None:
        self.states, self.start, self.may_drop = states, start, may_drop
        self.place(group)

    def taken(self, rows: Int[Tensor, " kept"]) -> SharedPrompts:
        """Return the same prompts for these rows alone; nothing is copied."""
        return SharedPrompts(self.states, self.start, self.group[rows], may_drop=False)

    @property
    def length(self) -> int:
        """The number of columns, padding included."""
        return int(self.states[0][0].shape[2])

    @property
    def have_gaps(self) -> bool:
        """Whether some prompt is shorter than the others."""
        return bool(self.start.any())

    @property
    def row_lengths(self) -> Int[Tensor, " row"]:
        """The number of tokens in each row's prompt."""
        return self.length - self.start[self.group]

    def place(self, group: Int[Tensor, " row"]) -> None:
        """Assign the rows to slots of their groups; drop groups without rows once there are many of them."""
        counts = torch.bincount(group, minlength=len(self.start))
        alive = counts > 0
        if self.may_drop and int(alive.sum()) < (1 - MAX_DEAD_GROUPS) * len(counts):
            self.states = [(keys[alive], values[alive]) for keys, values in self.states]
            self.start = self.start[alive]
            group = (alive.cumsum(0) - 1)[group]  # the groups' new numbers: how many live ones stand before each
            counts = counts[alive]
        self.group = group
        self.num_slots = int(counts.max())
        # Sorted by group, a row's slot is its number less that of its group's first row.
        order = group.argsort(stable=True)
        numbers = torch.arange(len(group), device=group.device)
        self._member = torch.empty_like(group)
        self._member[order] = numbers - (counts.cumsum(0) - counts)[group[order]]
        is_sorted = bool((order == numbers).all())
        self._full = is_sorted and len(group) == len(counts) * self.num_slots

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self.place(self.group[rows])

    def join(self, other: SharedPrompts) -> None:
        """Append the prompts and rows of ``other`` after this object's own, aligned at the last column."""
        length = max(self.length, other.length)
        self.start = torch.cat([self.start + (length - self.length), other.start + (length - other.length)])
        self.states = [
            (_stacked(keys, other_keys, length), _stacked(values, other_values, length))
            for (keys, values), (other_keys, other_values) in zip(self.states, other.states, strict=True)
        ]
        self.place(torch.cat([self.group, other.group + len(self.start) - len(other.start)]))

    def scores(
        self, layer: int, query: Float[Tensor, "row head share feature"]
    ) -> Float[Tensor, "row head share column"]:
        """Return the products of each row's queries with its prompt's keys; ``share`` query heads use one key head."""
        return self._of_groups(query, self.states[layer][0].transpose(2, 3))

    def weighted(
        self, layer: int, weights: Float[Tensor, "row head share column"]
    ) -> Float[Tensor, "row head share feature"]:
        """Return the sums of the values of each row's prompt with these weights."""
        return self._of_groups(weights, self.states[layer][1])

    def _of_groups(self, rows: Float[Tensor, "row head share n"], matrix: Float[Tensor, "group head n m"]) -> Tensor:
        """Return one product per group and head, of all its rows together: ``[row, head, share, m]``."""
        # The members of a group become rows of one matrix, [slot * share, n]: its prompt is then read once.
        _, num_heads, share, width = rows.shape
        shape = (len(self.start), num_heads, self.num_slots, share)
        if self._full:  # sorted and no holes: the grid is a view of the rows
            grid = rows.view(shape[0], self.num_slots, num_heads, share, width).transpose(1, 2)
        else:
            grid = rows.new_zeros(*shape, width)
            grid[self.group, :, self._member] = rows
        product = (grid.reshape(*shape[:2], -1, width) @ matrix).view(*shape, -1)
        return product.transpose(1, 2).flatten(0, 1) if self._full else product[self.group, :, self._member]


def _stacked(one: Float[Tensor, "group head column feature"], two: Tensor, length: int) -> Tensor:
    """Return both prompts' states in one tensor, padded on the left to ``length`` columns."""
    return torch.cat([torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in (one, two)])

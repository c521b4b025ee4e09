"""A maze in text: the model reads where it is and which ways are open, and walks to the goal."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from heliostat.tasks.environments.contract import Environment, Step

_MOVES = {"n": (0, -1), "e": (1, 0), "s": (0, 1), "w": (-1, 0)}

_Cell = tuple[int, int]


class Maze(Environment):
    """A turn is one of ``n``, ``e``, ``s`` and ``w``. An observation like ``1 2 es`` is column, row and open ways.

    The maze is a random spanning tree of a square grid, so that exactly one path leads to the goal. The reward is 1 at
    the goal, and 0 when all steps are used.

    Args:
        size: cells of a side, 2 to 9.
        max_steps: of one episode; ``None``: twice the length of the path.
        shaped: give ``1 - 0.5 * steps / max_steps`` at the goal, so that a shorter way earns more.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: ``size`` is not from 2 to 9, or ``max_steps`` is below 1.
    """

    manual: ClassVar[str] = (
        "Walk to the goal: write n, e, s or w. You read your column and row, and the ways that are open."
    )

    def __init__(
        self, size: int = 4, max_steps: int | None = None, shaped: bool = False, explain: bool = False
    ) -> None:
        if not 2 <= size <= 9:
            raise ValueError(f"size = {size}: must be from 2 to 9")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}: must be at least 1")
        self._size = size
        self._max_steps = max_steps
        self._shaped = shaped
        self._explain = explain
        self.open_ways: dict[_Cell, str] = {}
        self._place: _Cell = (0, 0)
        self._goal: _Cell = (0, 0)
        self._limit = self._num_steps = 0

    def problem(self, seed: int) -> dict[str, Any]:
        """Return the row of a problem: ``prompt``, ``answer`` (the moves of the path) and ``seed``."""
        self.reset({}, seed)
        manual = f"{self.manual}\n" if self._explain else ""
        goal = f"to {self._goal[0]} {self._goal[1]}\n"
        return {"prompt": manual + goal, "answer": self._path(), "seed": seed}

    def reset(self, problem: Mapping[str, Any], seed: int) -> str:
        """Begin the episode of ``seed``; the first observation is the start."""
        draw = random.Random(f"maze {seed}")
        self.open_ways = _spanning_tree(self._size, draw)
        self._place, self._goal = draw.sample(sorted(self.open_ways), 2)
        self._limit, self._num_steps = self._max_steps or 2 * len(self._path()), 0
        return self._observe()

    def step(self, action: str) -> Step:
        self._num_steps += 1
        way = action.strip()
        is_open = way in self.open_ways[self._place] and way in _MOVES
        info = {"calls": 1, "errors": int(not is_open), "invalid": way not in _MOVES}
        if is_open:
            self._place = _neighbour(self._place, way)
        if self._place == self._goal:
            reward = 1 - 0.5 * self._num_steps / self._limit if self._shaped else 1.0
            return Step(reward=reward, done=True, info={**info, "success": True})
        if self._num_steps >= self._limit:
            return Step(reward=0.0, done=True, info={**info, "success": False})
        return Step(self._observe(), info=info)

    def oracle(self) -> str:
        """Return the next move of the path."""
        return self._path()[0]

    def _observe(self) -> str:
        return f"{self._place[0]} {self._place[1]} {self.open_ways[self._place]}"

    def _path(self) -> str:
        """Return the moves from here to the goal."""
        paths, queue = {self._place: ""}, deque([self._place])
        while self._goal not in paths:
            cell = queue.popleft()
            for way in self.open_ways[cell]:
                if (other := _neighbour(cell, way)) not in paths:
                    paths[other] = paths[cell] + way
                    queue.append(other)
        return paths[self._goal]


def _neighbour(cell: _Cell, way: str) -> _Cell:
    return cell[0] + _MOVES[way][0], cell[1] + _MOVES[way][1]


def _spanning_tree(size: int, draw: random.Random) -> dict[_Cell, str]:
    """Return the open ways of each cell, by a depth-first walk."""
    ways: dict[_Cell, set[str]] = {(x, y): set() for x in range(size) for y in range(size)}
    opposite = {"n": "s", "e": "w", "s": "n", "w": "e"}
    path = [draw.choice(sorted(ways))]
    while path:
        closed = [way for way in _MOVES if (other := _neighbour(path[-1], way)) in ways and not ways[other]]
        if not closed:
            path.pop()
            continue
        way = draw.choice(closed)
        other = _neighbour(path[-1], way)
        ways[path[-1]].add(way)
        ways[other].add(opposite[way])
        path.append(other)
    return {cell: "".join(way for way in _MOVES if way in open_ways) for cell, open_ways in ways.items()}

"""The environment of the race against TRL's tool loop, as a class that both sides take unchanged.

    user: start 512     get(512) -> "807"     get(807) -> "344"     ...     get(290) -> "end 655"     assistant: 655

It has the form of TRL's ``environment_factory`` and imports neither library. An entry is a function of problem, place
and key, so every key has one: an episode that follows its chain wrongly is as long as one that follows it rightly.

Left out: a right policy (``caller``), and running anything (``tool_sides``).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NUM_CALLS = 7
NUM_TURNS = NUM_CALLS + 1
"""Calls, and the answer in words after the last one."""

MAX_TURN_TOKENS, MAX_EPISODE_TOKENS = 32, 320
"""Sampled tokens of a turn, and all tokens after the prompt; a trained model needs half of either."""


def entry(problem: int, place: int, key: int) -> int:
    """The number at a key: three digits."""
    return random.Random(f"{problem} {place} {key}").randrange(100, 1000)


class Chain:
    """Numbers that lead from one to the next; the reward is the share of calls that followed them."""

    def reset(self, problem: int, start: int, **row: Any) -> None:
        """Begin at ``start``; the prompt says it, so there is no first observation."""
        self._problem, self._told = problem, start
        self._num_calls = self._num_right = 0

    def get(self, key: int) -> str:
        """Read a number.

        Args:
            key: its key.
        """
        if self._num_calls == NUM_CALLS:
            return "end"
        self._num_right += key == self._told
        self._told = entry(self._problem, self._num_calls, key)
        self._num_calls += 1
        return f"end {self._told}" if self._num_calls == NUM_CALLS else str(self._told)

    def get_reward(self) -> float:
        """The share of the calls that asked for the number that was told last."""
        return self._num_right / NUM_CALLS


def write_problems(folder: Path, num: int = 512) -> Path:
    """Prompts as chats with the columns that ``reset`` takes, one JSON object a line."""
    target = folder / "problems.jsonl"
    draws = random.Random("problems")
    with target.open("w") as file:
        for problem in range(num):
            start = draws.randrange(100, 1000)
            prompt = [{"role": "user", "content": f"start {start}"}]
            file.write(json.dumps({"prompt": prompt, "problem": problem, "start": start}) + "\n")
    return target

"""The environment of the race against TRL's tool loop, as a class that both sides take unchanged.

    user: card 512     bid(807) -> "344"     bid(290) -> "655"     ...     bid(731) -> "end 120"     assistant: 120

It has the form of TRL's ``environment_factory`` and imports neither library. Any bid is answered by the next card, so
episodes of a model that can call have eight turns, however little it has learned; bids that look like chance earn about
half of the reward, so members of a group differ.

Left out: a policy (``caller``), and running anything (``tool_sides``).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NUM_CALLS = 7
NUM_TURNS = NUM_CALLS + 1
"""Calls, and an answer in words after the last one."""

MAX_TURN_TOKENS, MAX_EPISODE_TOKENS = 32, 320
"""Sampled tokens of a turn, and all tokens after the prompt: as many as a model that can call needs, and some more."""


class Cards:
    """Cards with three digits, seen before bidding; the reward is the share of cards that were outbid."""

    def reset(self, problem: int, card: int, **row: Any) -> None:
        """Show the first card; the prompt says it, so there is no first observation."""
        self._draws, self._card = random.Random(problem), card
        self._num_bids = self._num_won = 0

    def bid(self, amount: int) -> str:
        """Bid for a card.

        Args:
            amount: your bid.
        """
        if self._num_bids == NUM_CALLS:
            return "end"
        self._num_won += amount > self._card
        self._num_bids += 1
        self._card = self._draws.randrange(100, 1000)
        return f"end {self._card}" if self._num_bids == NUM_CALLS else str(self._card)

    def get_reward(self) -> float:
        """The share of the cards that were outbid."""
        return self._num_won / NUM_CALLS


def write_problems(folder: Path, num: int = 512) -> Path:
    """Prompts as chats with the columns that ``reset`` takes, one JSON object a line."""
    target = folder / "problems.jsonl"
    draws = random.Random("problems")
    with target.open("w") as file:
        for problem in range(num):
            card = draws.randrange(100, 1000)
            prompt = [{"role": "user", "content": f"card {card}"}]
            file.write(json.dumps({"prompt": prompt, "problem": problem, "card": card}) + "\n")
    return target

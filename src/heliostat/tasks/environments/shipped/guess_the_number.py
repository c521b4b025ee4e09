"""A number to find by guesses that are answered ``higher`` or ``lower``."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from heliostat.tasks.environments.contract import Environment, Step


class GuessTheNumber(Environment):
    """A turn is a number. The reward is 1 for the right one, and 0 when all guesses are used.

    Args:
        max_number: the number is from 1 to this.
        max_guesses: guesses of one episode; ``None``: as many as halving needs, 7 for 100 numbers.
        shaped: give ``guesses left + 1`` out of ``max_guesses`` for the right one, so that fewer guesses earn more.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: ``max_number`` or ``max_guesses`` is below 1.
    """

    manual: ClassVar[str] = "Guess a number by writing it. The answer is 'higher', 'lower' or the end."

    def __init__(
        self, max_number: int = 100, max_guesses: int | None = None, shaped: bool = False, explain: bool = False
    ) -> None:
        if max_number < 1 or (max_guesses is not None and max_guesses < 1):
            raise ValueError(f"max_number = {max_number}, max_guesses = {max_guesses}: must be at least 1")
        self._max_number = max_number
        self._max_guesses = max_guesses or max_number.bit_length()
        self._shaped = shaped
        self._explain = explain
        self._number = self._num_left = 0
        self._low, self._high = 1, max_number

    def problem(self, seed: int) -> dict[str, Any]:
        """Return the row of a problem: ``prompt``, ``answer`` and ``seed``."""
        manual = f"{self.manual}\n" if self._explain else ""
        return {"prompt": f"{manual}1 to {self._max_number}", "answer": str(self._draw(seed)), "seed": seed}

    def reset(self, problem: Mapping[str, Any], seed: int) -> None:
        """Begin the episode of ``seed``."""
        self._number, self._num_left = self._draw(seed), self._max_guesses
        self._low, self._high = 1, self._max_number

    def step(self, action: str) -> Step:
        self._num_left -= 1
        text = action.strip()
        is_number = text.isascii() and text.isdigit() and len(text) < 10
        info = {"calls": 1, "errors": int(not is_number), "invalid": not is_number}
        if is_number and int(text) == self._number:
            reward = (self._num_left + 1) / self._max_guesses if self._shaped else 1.0
            return Step(reward=reward, done=True, info={**info, "success": True})
        if self._num_left == 0:
            return Step(reward=0.0, done=True, info={**info, "success": False})
        if not is_number:
            return Step("number", info=info)
        if int(text) < self._number:
            self._low = max(self._low, int(text) + 1)
            return Step("higher", info=info)
        self._high = min(self._high, int(text) - 1)
        return Step("lower", info=info)

    def oracle(self) -> str:
        """Return the middle of the numbers that are still possible."""
        return str((self._low + self._high) // 2)

    def _draw(self, seed: int) -> int:
        return random.Random(f"guess {seed}").randint(1, self._max_number)

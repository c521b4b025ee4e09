"""A table of random keys and values that is seen only by calling: its answer is impossible without the call."""

from __future__ import annotations

import random
from typing import ClassVar

from heliostat.tasks.environments.shipped.question import BadCall, Question, QuestionEnvironment


class Lookup(QuestionEnvironment):
    """``get KEY`` returns the key's value; ``say VALUE`` ends the episode.

    The prompt is ``key 37``, or ``key 37 twice`` and ``key 37 3 times`` where a value is itself a key to get. Keys and
    values have two digits, so a guess is right once in 90 times. The same key has another value in every episode.

    Args:
        num_keys: size of the table.
        num_hops: calls between the key of the prompt and the answer.
        blind: answer calls with numbers that have nothing to do with the table: a control, in which no policy can
            succeed more often than a guess.
        explain: begin the prompt with the actions in words.

    Raises:
        ValueError: there are more hops than keys, or more keys than numbers of two digits.
    """

    manual: ClassVar[str] = "Write 'get KEY' to read the value of a key. Finish with 'say VALUE'."

    def __init__(self, num_keys: int = 8, num_hops: int = 1, blind: bool = False, explain: bool = False) -> None:
        super().__init__(explain)
        if not 1 <= num_hops <= num_keys <= 80:
            raise ValueError(f"num_hops = {num_hops}, num_keys = {num_keys}: need 1 <= num_hops <= num_keys <= 80")
        self._num_keys = num_keys
        self._num_hops = num_hops
        self._blind = blind
        self._table: dict[str, str] = {}
        self._shown: dict[str, str] = {}

    def make_question(self, seed: int) -> Question:
        draw = random.Random(f"lookup {seed}")
        keys = [str(key) for key in draw.sample(range(10, 100), self._num_keys)]
        path = keys[: self._num_hops]
        self._table = {key: str(draw.randint(10, 99)) for key in keys}
        self._shown = {key: str(draw.randint(10, 99)) for key in keys}
        self._table |= {key: path[index] for index, key in enumerate(path[:-1], start=1)}
        times = {1: "", 2: " twice"}.get(self._num_hops, f" {self._num_hops} times")
        return Question(f"key {path[0]}{times}", self._table[path[-1]], tuple(f"get {key}" for key in path))

    def call(self, action: str) -> str:
        verb, _, key = action.partition(" ")
        if verb != "get":
            raise BadCall("get or say")
        if key not in self._table:
            raise BadCall("none")
        return self._shown[key] if self._blind else self._table[key]

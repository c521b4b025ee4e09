"""The tasks: a chain of steps that must all be right, and a first choice that must be right before any of it.

    T1  prompt v0 d1 .. d(K-1) = dK, working v1 .. v(K-1) = vK           v_k = (3 v_{k-1} + d_k) mod 10
    T2  the same after a letter that names the procedure: Y is asked for; X is v_k = (v_{k-1} + 7 d_k) mod 10
    T3  T1 with v0 written before the working, so that all steps are alike: the value stands last, the letter at a fixed
        distance. A larger model, more problems and more updates
    T4  T3 with a model of ten million parameters, once, with fewer problems

The d lie between 0 and 3 and are written as letters, so that a very small model can tell them from values.

A completion counts if its whole working is right, so nothing succeeds by luck and the right text is unique: the success
rate *is* the probability of that text, and with a step right at rate q it is q^K.

Left out: training on them (``arena``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chain:
    """A task.

    Attributes:
        num_steps: K.
        choice: whether the working begins with the letter of a procedure.
        target: median success that the warm start stops at.
        start_lr, look_every: the warm start's rate, and its steps from look to look at that success.
        restated: whether the working begins with the value that the question gives.
        recipe: what differs from ``recipe.toml``.
    """

    name: str
    num_steps: int
    choice: bool = False
    target: float = 1 / 1200
    start_lr: float = 3e-3
    look_every: int = 5
    restated: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, digits: Sequence[int]) -> str:
        letters = ["qxzw"[digit] for digit in digits[1:]]
        return str(digits[0]) + "".join(letters[:-1]) + "=" + letters[-1]

    def work(self, digits: Sequence[int], procedure: str = "Y") -> str:
        """The right working of a procedure, its answer included."""
        value = digits[0]
        written = [str(value)] if self.restated else []
        for digit in digits[1:]:
            value = (3 * value + digit) % 10 if procedure == "Y" else (value + 7 * digit) % 10
            written.append(str(value))
        return (procedure if self.choice else "") + "".join(written[:-1]) + "=" + written[-1]

    def draw(self, num: int, seed: int) -> list[tuple[int, ...]]:
        """Digits of ``num`` problems."""
        drawn = np.random.default_rng(seed).integers(0, [10] + [4] * self.num_steps, (num, self.num_steps + 1))
        return [tuple(row) for row in drawn.tolist()]

    def write(self, path: Path, num: int, seed: int) -> None:
        """Problems as rows of a file."""
        rows = []
        for digits in self.draw(num, seed):
            work = self.work(digits)
            rows.append({"prompt": self.prompt(digits), "work": work, "answer": work.rpartition("=")[2]})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def larger(hidden_size: int, num_layers: int) -> dict[str, int]:
    """A model's settings; heads of 32, three times as wide between."""
    heads = hidden_size // 32
    width = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "context_length": 64}
    return {**width, "num_layers": num_layers, "num_heads": heads, "num_kv_heads": heads}


ALIKE: dict[str, Any] = {"restated": True, "start_lr": 1e-3, "look_every": 1}
TASKS = {
    task.name: task
    for task in (
        Chain("T1", 16),
        Chain("T2", 6, choice=True),
        Chain(
            "T3",
            16,
            recipe={"model.settings": larger(160, 4), "task.num_train": 160, "train.num_steps": 160},
            **ALIKE,
        ),
        Chain(
            "T4",
            16,
            recipe={"model.settings": larger(384, 6), "task.num_train": 24, "train.num_steps": 160},
            **ALIKE,
        ),
    )
}


def whole_work(completions: list[str], work: list[str]) -> list[float]:
    """1.0 if every step is right."""
    return [float(done.strip() == right) for done, right in zip(completions, work, strict=True)]

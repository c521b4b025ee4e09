"""Pairs of digits that sum to a number: the problems of ``answers.py``, and a verifier that imports nothing heavy."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

TARGETS = range(6, 15)
NUM_TAGS = 40


def right(prompts, completions):
    """1 for two digits from 1 to 9 whose sum is the number that the prompt begins with."""
    return [float(pair(prompt, text) is not None) for prompt, text in zip(prompts, completions, strict=True)]


def pair(prompt: str, text: str) -> tuple[int, int] | None:
    """The right answer in a completion, or ``None``."""
    found = re.fullmatch(r"([1-9])\+([1-9])", text.strip())
    if found is None or int(found[1]) + int(found[2]) != int(prompt.split()[0]):
        return None
    return int(found[1]), int(found[2])


def valid(target: int) -> list[tuple[int, int]]:
    """All right answers."""
    return [(a, target - a) for a in range(1, 10) if 1 <= target - a <= 9]


def write_problems(path: Path) -> Path:
    """Each sum under many tags, which mean nothing, with a right answer drawn at random for the warm start."""
    rng = random.Random(0)
    rows = []
    for target in TARGETS:
        for tag in range(NUM_TAGS):
            a, b = rng.choice(valid(target))
            rows.append({"prompt": f"{target} ({tag})", "solution": f"{a}+{b}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

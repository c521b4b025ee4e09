"""Problems that are hard because twelve steps in a row must be right, and the verifier that checks all of them.

    python chain.py       writes chain.jsonl (1000 problems for a supervised start) and hard.jsonl (16 others)

A problem is a start value and letters; each letter is a step: ``v <- (3 v + d) mod 10`` with d = 0, 1, 2, 3 for
``q x z w``. The working writes every value down.
"""

import json
import random
from pathlib import Path

LETTERS = "qxzw"
NUM_STEPS = 12


def make(value: int, letters: str) -> dict[str, str]:
    """One row."""
    written = []
    for letter in letters:
        value = (3 * value + LETTERS.index(letter)) % 10
        written.append(str(value))
    work = "".join(written[:-1]) + "=" + written[-1]
    return {"work": work, "answer": written[-1]}


def whole_work(completions: list[str], work: list[str]) -> list[float]:
    """1.0 if every step is right: the last digit alone would be right by luck once in ten."""
    return [float(done.strip() == right) for done, right in zip(completions, work, strict=True)]


if __name__ == "__main__":
    draw = random.Random(0)
    rows = {}
    while len(rows) < 1016:
        value, letters = draw.randrange(10), "".join(draw.choices(LETTERS, k=NUM_STEPS))
        prompt = f"{value}{letters[:-1]}={letters[-1]}"
        rows[prompt] = {"prompt": prompt, **make(value, letters)}
    lines = [json.dumps(row) + "\n" for row in rows.values()]
    Path("chain.jsonl").write_text("".join(lines[:1000]))
    Path("hard.jsonl").write_text("".join(lines[1000:]))

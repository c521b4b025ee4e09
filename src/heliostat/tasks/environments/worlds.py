"""Describe a problem to an environment: the row that its ``reset`` receives, and the seed of its world."""

from __future__ import annotations

import hashlib
from typing import Any

from heliostat.types import Problem

SEED_COLUMN = "seed"


def row_of(problem: Problem) -> dict[str, Any]:
    """Return the data row that an environment's ``reset`` receives: ``prompt``, ``answer``, and all other columns."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return {**problem.columns, "prompt": prompt, "answer": problem.answer}


def seed_of(problem: Problem) -> int:
    """Return the seed of a problem's episodes: its column ``seed``, else a hash of its task and id.

    Limits:
        It depends on the problem alone, so that an episode's world is the same in every run and for every member of a
        group.
    """
    seed = problem.columns.get(SEED_COLUMN)
    if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0:
        return seed
    text = f"{problem.task}\n{problem.problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

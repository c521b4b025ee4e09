"""The row and the seed with which a problem's episodes are opened.

Left out: running episodes (``pool``). No environment process imports this module.
"""

from __future__ import annotations

import hashlib
from typing import Any

from heliostat.types import Problem

_BITS = 31  # a seed that numpy, gymnasium and C libraries accept


def row_of(problem: Problem) -> dict[str, Any]:
    """Return the row that an environment's ``reset`` gets: all columns, with ``prompt`` and ``answer``."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return {**problem.columns, "prompt": prompt, "answer": problem.answer}


def episode_seed(problem: Problem) -> int:
    """Return the seed of a problem's episodes: its ``seed`` column, else a stable hash of its task and identifier.

    **Limits**: the world is a function of the problem alone, in every run and every process.
    """
    seed = problem.columns.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        return seed
    digest = hashlib.sha256(f"{problem.task}\0{problem.problem_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _BITS)

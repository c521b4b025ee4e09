"""Describe a recipe's environment to the processes that build it, and a problem to the environment.

Left out: building (``building``) and running (``pool``).
"""

from __future__ import annotations

import hashlib
from typing import Any

from heliostat.config import EnvironmentSection
from heliostat.tasks.environments.contract import EnvironmentSpec
from heliostat.types import Problem

SEED_COLUMN = "seed"


def spec_of(section: EnvironmentSection, import_from: str = "") -> EnvironmentSpec:
    """Describe the environment of a recipe.

    Args:
        import_from: folder that modules are imported from, besides the working directory; empty: the section's own.
    """
    return EnvironmentSpec(
        name=section.name,
        tools=section.tools,
        settings=section.settings,
        import_from=import_from or section.import_from,
        timeout_s=section.timeout_s,
        memory_mb=section.memory_mb,
        num_workers=section.num_workers,
    )


def spec_if_enabled(section: EnvironmentSection) -> EnvironmentSpec | None:
    """Describe the environment of a recipe; ``None`` if it has none."""
    return spec_of(section) if section.enabled else None


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

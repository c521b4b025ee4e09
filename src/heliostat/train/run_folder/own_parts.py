"""The parts of a recipe that are not shipped, with the versions that a run records.

Left out: finding them (``heliostat.named_imports``).
"""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.config import Recipe
from heliostat.extensions import source_of
from heliostat.tasks.data.in_memory import PREFIX


def own_parts(recipe: Recipe) -> dict[str, str]:
    """Return the source of each part that is not shipped, like ``{"objective 'margin:Margin'": "margin.py, …"}``.

    A function that a program gave to its run is left out, since its name says so.
    """
    found = {f"{kind} '{name}'": source_of(kind, name) for kind, name in _named(recipe) if not name.startswith(PREFIX)}
    return {part: source for part, source in found.items() if source}


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the kind and name of every part that may be a user's own."""
    yield "objective", recipe.objective.name
    yield "optimizer", recipe.optimizer.name
    yield "engine", recipe.rollout.engine
    if recipe.judge.name:
        yield "judge", recipe.judge.name
    yield from (("tracker", name) for name in recipe.tracking.trackers)
    yield from (("environment", name) for name in (recipe.environment.name, *recipe.environment.tools) if name)
    for task in recipe.task:
        for table in task.settings.get("verifiers", ()):
            yield "verifier", str(table["name"])

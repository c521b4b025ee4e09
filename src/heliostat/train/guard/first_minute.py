"""Settings for the findings of the first minute: numbers of the recipe, and the length of worked solutions.

Left out: the findings (``monitors.absolute_monitor``), and their report (``run_guard``).
"""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.models import encode_solution
from heliostat.monitors import recipe_numbers
from heliostat.monitors.absolute_rules import LONGEST_SOLUTION
from heliostat.tasks import Task
from heliostat.train.model_bundle import ModelBundle

NUM_SOLUTIONS = 64
"""Training problems per task whose solutions are measured, at most."""


def first_minute_settings(bundle: ModelBundle, tasks: Sequence[Task]) -> dict[str, float]:
    """Collect numbers of the recipe by dotted name, and ``task.longest_solution`` in tokens where solutions exist."""
    numbers = recipe_numbers(bundle.recipe.model_dump())
    if bundle.recipe.environment.enabled:  # its limits are on turns; a worked solution is a conversation
        return numbers
    problems = [problem for task in tasks for problem in task.train[:NUM_SOLUTIONS] if problem.solution]
    lengths = [
        len(encode_solution(bundle.loaded, bundle.prompt(problem), problem.solution))
        for problem in problems
        if problem.solution
    ]
    return numbers | ({LONGEST_SOLUTION: float(max(lengths))} if lengths else {})

"""What the findings of the first minute need to know of a run: numbers of its recipe, and how long its solutions are.

Left out: the findings (``monitors.absolute_monitor``), and saying them (``run_guard``).
"""

from __future__ import annotations

from collections.abc import Sequence

from heliostat.models import encode_solution
from heliostat.monitors import recipe_numbers
from heliostat.monitors.absolute_rules import LONGEST_SOLUTION
from heliostat.tasks import Task
from heliostat.train.model_bundle import ModelBundle

NUM_SOLUTIONS = 64


def first_minute_settings(bundle: ModelBundle, tasks: Sequence[Task]) -> dict[str, float]:
    """Numbers by dotted name: the recipe's, and ``task.longest_solution`` in tokens where solutions are worked."""
    numbers = recipe_numbers(bundle.recipe.model_dump())
    problems = [problem for task in tasks for problem in task.train[:NUM_SOLUTIONS] if problem.solution]
    lengths = [
        len(encode_solution(bundle.loaded, bundle.prompt(problem), problem.solution))
        for problem in problems
        if problem.solution
    ]
    return numbers | ({LONGEST_SOLUTION: float(max(lengths))} if lengths else {})

"""A recipe's problems, model and verifiers, combined to find, encode and verify the problems of a trace file.

Left out: the files and the bank (``traces``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from heliostat.config import Recipe
from heliostat.tasks import Task, VerifierPool
from heliostat.tasks.task import ENVIRONMENT
from heliostat.traces import Problems
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.distributed.ranks import start_runtime
from heliostat.train.model_bundle import set_up_sampler


def verifier_names(task: Task) -> str:
    """Join the names of a task's verifiers, as its traces record them."""
    return "+".join(weighted.name for weighted in task.verifiers) or ENVIRONMENT


@contextmanager
def problems_of(recipe: Recipe) -> Iterator[Problems]:
    """Open the recipe's training and held-out problems, with its model's encoding and its verifiers."""
    tasks = load_tasks(recipe)
    bundle = set_up_sampler(recipe, start_runtime(recipe.run))
    problems = [problem for task in tasks for problem in (*task.train, *task.heldout)]
    verifier = "+".join(dict.fromkeys(verifier_names(task) for task in tasks))
    with VerifierPool(tasks) as pool:
        yield Problems(problems, bundle.loaded, bundle.prompt, pool.verify, verifier)

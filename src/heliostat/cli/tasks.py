"""``heliostat tasks``: list, show and audit.

Left out: the audits (``heliostat.tasks``).
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from heliostat.cli.json_output import print_json
from heliostat.printed import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heliostat.config import Recipe
    from heliostat.tasks import AuditReport, EnvironmentReport, Task
    from heliostat.tasks.reward_audit.exploits import JudgeReport

NUM_AUDITED_PROBLEMS = 20


def list_tasks(args: Namespace) -> int:
    """Run ``heliostat tasks list``."""
    from heliostat.cli.tables import print_lines
    from heliostat.tasks import list_tasks

    own = {
        "file": "problems of your own: --task.path, --task.verifiers",
        "environment": "problems that the recipe's environment makes: --environment.name",
    }
    if args.json:
        print_json(args, {"tasks": list_tasks() | own})
    else:
        print_lines("task", list_tasks() | own)
    return 0


def show_task(args: Namespace) -> int:
    """Run ``heliostat tasks show``."""
    from heliostat.config import is_recipe, load_recipe

    if is_recipe(args.name):
        from heliostat.tasks import show_tasks_of

        say(show_tasks_of(load_recipe(args.name)))
    else:
        from heliostat.tasks import show_task

        say(show_task(args.name))
    return 0


def audit_task(args: Namespace) -> int:
    """Run ``heliostat tasks audit``: exit code 1 if junk earns a reward, or a right answer earns none.

    A recipe with an environment has that audited too: exit code 1 if anything speaks against training in it.
    """
    from heliostat.config import build_recipe, is_recipe, load_recipe

    if is_recipe(args.name):
        recipe = load_recipe(args.name, args.overrides)
    else:
        few = {"task.num_train": NUM_AUDITED_PROBLEMS, "task.num_heldout": 1}  # some take a second each to build
        recipe = build_recipe({"task.name": args.name, **few}, args.overrides)
    from heliostat.tasks import audit, load_task

    reports: list[AuditReport | EnvironmentReport | JudgeReport]
    if recipe.environment.enabled:
        found, is_clean = _audit_environment(recipe, args.seed)
        reports = [*found]
    else:
        judged = recipe.judge.enabled
        tasks = [load_task(section, args.seed, is_judged=judged) for section in recipe.task]
        rewards = [audit(task, heldout=True) for task in tasks if not judged or task.verifiers]
        judges = _audit_judge(recipe, tasks) if judged else []
        reports = [*rewards, *judges]
        is_clean = not any(report.hackable for report in reports) and not any(report.refused for report in rewards)
    if args.json:
        print_json(args, {"passed": is_clean, "audits": [report.to_json() for report in reports]})
    else:
        for report in reports:
            say(report.format())
        if recipe.judge.enabled and recipe.environment.enabled:
            from heliostat.train.checks.reward_audit import NOT_OF_EPISODES

            say(NOT_OF_EPISODES)
    return 0 if is_clean else 1


def _audit_judge(recipe: Recipe, tasks: Sequence[Task]) -> list[JudgeReport]:
    """Try known exploits on a recipe's judge; its replies are not kept."""
    from heliostat.tasks.reward_audit.exploits import audit_judge
    from heliostat.train.distributed.ranks import start_runtime
    from heliostat.train.judges.opening import open_judge

    judging = open_judge(recipe, tasks, start_runtime(recipe.run))
    if judging is None:
        return []
    try:
        return [audit_judge(judging, task, NUM_AUDITED_PROBLEMS) for task in tasks]
    finally:
        judging.judge.close()


def _audit_environment(recipe: Recipe, seed: int) -> tuple[list[AuditReport | EnvironmentReport], bool]:
    """Audit a recipe's environment on the problems of each task, and the verifiers where it gives no reward.

    Returns:
        The reports, and whether nothing speaks against training.
    """
    from heliostat.tasks import audit, audit_environment, load_task
    from heliostat.tasks.environment_settings import environment_of

    spec, max_turns = environment_of(recipe.environment), recipe.environment.max_turns
    assert spec is not None  # the recipe has an environment
    reports: list[AuditReport | EnvironmentReport] = []
    is_clean = True
    for section in recipe.task:
        task = load_task(section, seed, recipe.environment, is_judged=recipe.judge.enabled)
        found = audit_environment(spec, task.train, max_turns=max_turns)
        found = found.for_a_judge() if recipe.judge.enabled else found
        reports.append(found)
        is_clean = is_clean and found.passed
        if task.verifiers and not found.is_scored:
            report = audit(task, heldout=True)
            reports.append(report)
            is_clean = is_clean and not (report.hackable or report.refused)
    return reports, is_clean

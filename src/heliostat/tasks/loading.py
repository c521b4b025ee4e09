"""Load a ``Task`` from a ``[[task]]`` section of a recipe: check every setting first, then load problems.

Left out: reasoning-gym (``sources.reasoning_gym``), data files (``sources.data_files``) and environments
(``sources.environment``) themselves; each registers one ``TaskSource`` here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heliostat.config import ConfigError, EnvironmentSection, Recipe, TaskSection, build_checked, nearest
from heliostat.tasks.settings import check_needs
from heliostat.tasks.sources.data_files import FileSettings, load_file, show_file_task
from heliostat.tasks.sources.environment import EnvironmentTaskSettings, load_environment, show_environment_task
from heliostat.tasks.sources.reasoning_gym import GymSettings, list_tasks, load_gym, show_gym_task
from heliostat.tasks.task import Task


@dataclass(frozen=True, slots=True)
class TaskSource:
    """A source of problems: its settings, its loader, and its description for people."""

    settings: type[Any]
    load: Callable[[TaskSection, Any, int, EnvironmentSection], Task]
    show: Callable[[str], str]


SOURCES: dict[str, TaskSource] = {
    "reasoning-gym": TaskSource(GymSettings, load_gym, show_gym_task),
    "file": TaskSource(FileSettings, load_file, show_file_task),
    "environment": TaskSource(EnvironmentTaskSettings, load_environment, show_environment_task),
}
NUM_EXAMPLES = 3
_NO_ENVIRONMENT = EnvironmentSection(name="")


def show_task(name: str) -> str:
    """Describe a task: one line, its settings with their defaults, and examples if it has any.

    Raises:
        ConfigError: there is no such task.
    """
    kind = name.partition("/")[0]
    return SOURCES[kind if kind in SOURCES else "reasoning-gym"].show(name)


def show_tasks_of(recipe: Recipe) -> str:
    """Describe the tasks of a recipe: their settings, and the first training problems with their answers.

    Raises:
        ConfigError, ValueError: as ``load_task``.
    """
    return "\n\n".join(_described(_of_recipe(recipe, one), one) for one in recipe.task)


def _of_recipe(recipe: Recipe, section: TaskSection) -> Task:
    return load_task(section, recipe.run.seed, recipe.environment, is_judged=recipe.judge.enabled)


def _described(task: Task, section: TaskSection) -> str:
    lines = [task.name, f"{len(task.train)} training problems, {len(task.heldout)} held out", "", "settings:"]
    lines += [f"  {key} = {value!r}" for key, value in section.model_dump().items()]
    for number, problem in enumerate(task.train[:NUM_EXAMPLES], start=1):
        answer = [] if problem.answer is None else [f"answer: {problem.answer}"]
        lines += ["", f"example {number}:", problem.question, *answer]
    return "\n".join(lines)


def load_task(
    section: TaskSection,
    seed: int,
    environment: EnvironmentSection = _NO_ENVIRONMENT,
    *,
    is_judged: bool = False,
) -> Task:
    """Load a task's problems, split them by ``seed``, and build its verifiers.

    Args:
        section: a recipe's task section; its keys beyond ``num_train`` and ``num_heldout`` belong to the source.
        seed: decides which problems are drawn, and which of them are held out.
        environment: the recipe's environment. It makes the problems of an ``environment`` task; with any other task,
            verifiers may be left out where it gives the rewards.
        is_judged: whether a judge gives the rewards, so that verifiers may be left out.

    Returns:
        A task with exactly ``num_train`` and ``num_heldout`` problems, no question text in both.

    Raises:
        ConfigError: a name, key or value is wrong, or a file is missing; before anything expensive happens.
        ValueError: the data is: a bad row (with its file and line), or too few different problems.

    Limits:
        The held-out set depends on the source's settings, ``num_heldout`` and ``seed``, never on ``num_train``.
    """
    kind, _, dataset = section.name.partition("/")
    if kind not in SOURCES or bool(dataset) != (kind == "reasoning-gym"):
        raise ConfigError(_unknown(section.name))
    source = SOURCES[kind]
    settings = build_checked(source.settings, section.settings, "task")
    if isinstance(settings, FileSettings) and not (settings.verifiers or environment.name or is_judged):
        raise ConfigError('a file task needs task.verifiers, for example [{name = "numeric"}], or a [judge]')
    task = source.load(section, settings, seed, environment)
    check_needs(task)
    return task


def _unknown(name: str) -> str:
    choices = [*list_tasks(), "file", "environment"]
    kinds = "'file' or 'reasoning-gym/<dataset>', or 'environment' with an [environment]"
    return f"unknown task.name '{name}'{nearest(name, choices)}; it is {kinds}"

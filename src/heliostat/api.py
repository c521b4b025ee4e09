"""Functions for notebooks and scripts: the commands of the command line, each on a recipe's name, path or ``Recipe``.

    result = heliostat.post_train("demo", {"train.num_steps": 20})
    print(result.before.pass_at_1, "->", result.after.pass_at_1, result.folder)

    heliostat.post_train(model="tiny", data=rows, rewards=[my_function])     rows: a list of dicts, a frame, a Dataset

Left out: the parts of these functions (import them from their own packages), and single updates (``research``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_path, as_text, paths
from heliostat.config import ConfigError, Recipe, build_recipe, load_recipe
from heliostat.extensions import with_parts
from heliostat.report import write_report
from heliostat.rollout import SamplingSettings
from heliostat.run_models import recipe_of
from heliostat.tasks import AuditReport
from heliostat.tasks import audit as audit_task
from heliostat.tasks.data.in_memory import Registry, named, registering, with_registered
from heliostat.tasks.data.rows import read_rows
from heliostat.tasks.sources.data_files import fitting_sizes
from heliostat.traces import BankSummary
from heliostat.train import (
    EvalReport,
    RunFailed,
    RunResult,
    SampledConversations,
    run_conversations,
    run_eval,
    run_recipe,
    run_sample,
    run_sft,
)
from heliostat.train.checks.recipe import load_tasks
from heliostat.train.run import EXPECTED_FAILURES
from heliostat.types import Group

Overrides = Mapping[str, Any] | Sequence[str]
Rewards = Sequence[Any]
RecipeLike = PathArg | Recipe


def post_train(
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    run_dir: PathArg | None = None,
    *,
    model: PathArg | None = None,
    data: object = None,
    heldout: object = None,
    rewards: Rewards = (),
    environment: object = None,
    tools: Sequence[Any] = (),
    objective: object = None,
    optimizer: object = None,
    engine: object = None,
    tracker: object = None,
    profile: bool = False,
    opened: Callable[[Path], None] | None = None,
) -> RunResult:
    """Warm start, post-train, evaluate, save the model and write the report page.

    Reward functions are pickled by value for the verifier processes. They may be defined in the running script, a
    notebook or on standard input, and may be lambdas or closures over picklable values.

    Args:
        recipe: a shipped recipe's name, a TOML path, or a ``Recipe``. Default: every setting at its default.
        overrides: settings by dotted key, ``{"objective.tau": 0.5}``, or command-line words.
        run_dir: the run folder; an unfinished run of the same recipe there is continued. Default: a new folder.
        model: replaces the recipe's ``model.path``.
        data: rows with a ``prompt`` each: a list of dicts, a pandas or polars frame, a ``datasets.Dataset`` or a
            ``DatasetDict``, or the path of a file of rows. They replace the recipe's task. ``task.prompt_column`` names
            a column other than ``prompt``. By default a tenth of the rows is held out, 200 at most.
        heldout: rows to evaluate on, of the same kinds. Default: the ``test`` or ``validation`` split of ``data`` if it
            has one, else some of its rows. Rows of ``data`` with the same questions are not trained on.
        rewards: functions with TRL's signature, ``f(prompts, completions, **columns) -> list[float]``, which replace
            the task's verifiers. Names and tables of verifiers work too, ``{"name": f, "weight": 0.5}``. Functions see
            the whole completion. By default the reward is the weighted sum of scores (``task.shaped``).
        environment: answers the model over several turns: a shipped environment's name, ``module:Name``, or a class of
            ours, TRL's ``environment_factory``, skyrl-gym's, gymnasium's or textarena's form, unchanged. Without
            ``data``, the problems are its own.
        tools: typed, docstringed functions that the model may call.
        objective: a name, or a class of a module's top level, which replaces the recipe's objective. Its settings are
            overrides like ``{"objective.margin": 3.0}``.
        optimizer: the same for the optimizer; the recipe's learning rate and schedule stay.
        engine: the same for the sampling engine.
        tracker: the same for a tracker, which is added to those of the recipe.
        profile: whether to print time and memory by phase after a few steps.
        opened: called with the run folder once the run is about to work, for example to show its files meanwhile.

    Returns:
        The result: ``status``, held-out results ``before`` and ``after``, and the run ``folder``.

    Raises:
        ConfigError: the recipe is invalid; nothing was started.
        FileNotFoundError: the data file does not exist.
        RunFailed: the run failed; the exception has the reason and the run folder.
    """
    parts = {"objective": objective, "optimizer": optimizer, "engine": engine, "tracker": tracker}
    with registering() as given:
        checked, name = _given_recipe(
            given, recipe, overrides, (data, heldout), rewards, model, environment, tools, parts
        )
        return _concluded(run_recipe(checked, run_dir, name, profile=profile, opened=opened))


def sft(
    recipe: RecipeLike,
    data: object = None,
    overrides: Overrides = (),
    run_dir: PathArg | None = None,
) -> RunResult:
    """Run only the recipe's supervised warm start, on its own task or on other worked solutions.

    Args:
        data: a file or folder, or rows as in ``post_train``: with ``prompt`` and ``completion`` (texts or chat
            messages), with whole conversations in ``messages``, or with the columns that the recipe names.

    Raises:
        ConfigError: the recipe is invalid.
        FileNotFoundError: the data file does not exist.
        RunFailed: see ``post_train``.
    """
    checked, name = _recipe(recipe, overrides)
    with registering() as given:
        if isinstance(data, str | os.PathLike):
            _check_exists(data)
        source = data if data is None or isinstance(data, str | os.PathLike) else given.rows(data)
        return _concluded(run_sft(checked, source, run_dir, name))


def evaluate(
    models: PathArg | Iterable[PathArg],
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    *,
    data: object = None,
    heldout: object = None,
    rewards: Rewards = (),
    num_problems: int | None = None,
    num_samples: int | None = None,
    greedy: bool = True,
    settings: SamplingSettings | None = None,
) -> EvalReport:
    """Evaluate one model on held-out problems, or compare two models problem by problem.

    Args:
        models: names, folders or run folders.
        recipe: default: that of the run that a model comes from, else every setting at its default.
        data: as in ``post_train``, with the same held-out rows.
        heldout: as in ``post_train``.
        rewards: as in ``post_train``.

    Raises:
        ValueError: no model, or more than two.
        RunFailed: a verifier or the rollout server failed, or the model's logits are not finite.
    """
    several = [as_text(model) for model in paths(models)]
    if len(several) not in (1, 2):
        raise ValueError(f"an evaluation takes one model, or two to compare, not {len(several)}")
    with registering() as given, _failures_raised():
        own = recipe_of(several) if recipe is None else recipe
        checked, _ = _given_recipe(given, own, overrides, (data, heldout), rewards)
        return run_eval(
            several, checked, num_problems=num_problems, num_samples=num_samples, greedy=greedy, settings=settings
        )


def audit(
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    *,
    data: object = None,
    heldout: object = None,
    rewards: Rewards = (),
    num_problems: int = 20,
) -> list[AuditReport]:
    """Try right answers and dozens of tricks on the reward of each task, without a model.

    Args:
        recipe: as in ``post_train``, like ``overrides``, ``data``, ``heldout`` and ``rewards``.
        num_problems: training problems to try each trick on.

    Returns:
        One report for each task of the recipe; ``print`` it.

    Raises:
        ConfigError: the recipe is invalid, or has an environment (``heliostat.tasks.audit_environment`` plays one).
        RunFailed: no verifier process can be started.
    """
    with registering() as given, _failures_raised():
        checked, _ = _given_recipe(given, recipe, overrides, (data, heldout), rewards)
        if checked.environment.enabled:
            raise ConfigError(
                "the recipe has an environment, whose audit plays episodes: heliostat.tasks.audit_environment"
            )
        return [audit_task(task, num_problems, heldout=True) for task in load_tasks(checked)]


def sample(
    model: PathArg,
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    *,
    prompt: str | None = None,
    num_samples: int = 4,
    settings: SamplingSettings | None = None,
) -> list[Group]:
    """Sample completions of a prompt or of a recipe's first held-out problems, without verifying them.

    Args:
        recipe: default: that of the run that the model comes from.

    Raises:
        ValueError: there is neither a prompt nor a recipe to take problems from.
    """
    recipe = recipe_of([model]) if recipe is None else recipe
    if recipe is None and prompt is None:
        raise ValueError("sample needs a prompt, or a recipe to take problems from")
    checked = build_recipe({}, overrides) if recipe is None else _recipe(recipe, overrides)[0]
    with _failures_raised():
        return run_sample(model, checked, prompt=prompt, num_samples=num_samples, settings=settings)


def sample_conversations(
    model: PathArg,
    recipe: RecipeLike,
    overrides: Overrides = (),
    *,
    prompt: str | None = None,
    num_samples: int = 4,
    settings: SamplingSettings | None = None,
) -> list[SampledConversations]:
    """Sample as ``sample`` does with a recipe that has an environment, and decode every turn and every answer."""
    checked, _ = _recipe(recipe, overrides)
    with _failures_raised():
        return run_conversations(model, checked, prompt=prompt, num_samples=num_samples, settings=settings)


def collect(
    model: PathArg,
    recipe: RecipeLike,
    bank: PathArg,
    overrides: Overrides = (),
    *,
    num_successes: int = 1,
    max_attempts: int = 256,
    num_problems: int | None = None,
) -> BankSummary:
    """Sample the recipe's training problems into a trace bank until each has enough successes or attempts.

    Args:
        bank: file of the trace bank; a stopped collection continues there.
        num_successes: number of successes after which a problem is done.
        max_attempts: number of attempts after which a problem is given up.
        num_problems: number of training problems, from the first one. Default: all.

    Returns:
        A summary of the bank, with the histogram of attempts.
    """
    from heliostat.train.data.collect import Quota, run_collect

    checked, _ = _recipe(recipe, overrides)
    with _failures_raised():
        return run_collect(as_text(model), checked, as_path(bank), Quota(num_successes, max_attempts), num_problems)


@contextmanager
def _failures_raised() -> Iterator[None]:
    """Raise the expected failures of runs as ``RunFailed``, for functions without a run."""
    try:
        yield
    except EXPECTED_FAILURES as error:
        raise RunFailed(str(error)) from error


def _concluded(result: RunResult) -> RunResult:
    """Write the run's page, and raise a failed run."""
    result = _with_page(result)
    if result.status == "failed":
        raise RunFailed(result.reason, result.folder, result)
    return result


def _with_page(result: RunResult) -> RunResult:
    """Write the run's page; an error of writing must not hide the result of the run."""
    if not result.is_main_process:
        return result
    try:
        write_report([result.folder])
    except (OSError, ConfigError) as error:
        unwritten = f"the report could not be written ({error}); heliostat report {result.folder} writes it again"
        reason = "; ".join(filter(None, (result.reason, unwritten)))
        return replace(result, reason=reason)
    return result


def _given_recipe(
    given: Registry,
    recipe: RecipeLike | None,
    overrides: Overrides,
    data: tuple[object, object],
    rewards: Rewards,
    model: PathArg | None = None,
    environment: object = None,
    tools: Sequence[Any] = (),
    parts: Mapping[str, object] | None = None,
) -> tuple[Recipe, str]:
    """Build the recipe with the given objects in place of its own settings, and overrides in place of both.

    Args:
        data: rows to train on, and rows to hold out.
        parts: see ``extensions.with_parts``.

    Returns:
        The recipe and its name.
    """
    base, name = (build_recipe({}), "run") if recipe is None else _recipe(recipe, ())
    if model is not None:
        base = build_recipe(base.model_dump(mode="json"), {"model.path": as_text(model)})
    if isinstance(overrides, Mapping):
        overrides = named(given, overrides)
    if callable(tools) or isinstance(tools, str):
        raise TypeError(f"tools is a list, even of one: tools=[{getattr(tools, '__name__', repr(tools))}]")
    if callable(rewards) or isinstance(rewards, str | Mapping):
        raise TypeError(f"rewards is a list, even of one: rewards=[{getattr(rewards, '__name__', repr(rewards))}]")
    rows, heldout = (_rows_of(one) for one in data)
    tables = with_parts(with_registered(base, given, rows, rewards, heldout, environment, tools), parts or {})
    if environment is not None and rows is None and recipe is None:
        tables["task"] = [{"name": "environment"}]
    return _fitted(tables, overrides) if rows is not None else build_recipe(tables, overrides), name


def _rows_of(data: object) -> object:
    """Read the rows of a data file or folder; anything else is returned as it is."""
    if not isinstance(data, str | os.PathLike):
        return data
    _check_exists(data)
    return [row.columns for row in read_rows(as_text(data), "train", "")]


def _check_exists(data: PathArg) -> None:
    if not as_path(data).exists():
        raise FileNotFoundError(f"there is no data file {as_text(data)}")


def _fitted(tables: dict[str, Any], overrides: Overrides) -> Recipe:
    """Build a recipe that uses all given rows, unless overrides say otherwise."""
    recipe = build_recipe(tables, overrides)
    section, first = recipe.task[0], tables["task"][0]
    if section.settings.get("path") != first["path"]:
        return recipe
    asked = None if section.num_heldout == first["num_heldout"] else section.num_heldout
    tables["task"][0] = first | fitting_sizes(section, recipe.run.seed, asked)
    return build_recipe(tables, overrides)


def _recipe(recipe: RecipeLike, overrides: Overrides) -> tuple[Recipe, str]:
    if isinstance(recipe, Recipe):
        return build_recipe(recipe.model_dump(mode="json"), overrides), "recipe"
    return load_recipe(recipe, overrides), Path(recipe).stem

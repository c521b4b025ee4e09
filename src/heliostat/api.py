"""Heliostat in a notebook: the command line's verbs as functions, each a recipe name (or path, or ``Recipe``) away.

    result = heliostat.post_train("demo", {"train.num_steps": 20})
    print(result.before.pass_at_1, "->", result.after.pass_at_1, result.folder)

    heliostat.post_train(model="tiny", data=rows, rewards=[my_function])     rows: a list of dicts, a frame, a Dataset

Left out: the parts of these functions, which can be imported from their own packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError, Recipe, build_recipe, load_recipe
from heliostat.report import write_report
from heliostat.rollout import SamplingSettings
from heliostat.tasks.data.in_memory import Registry, named, registering, with_registered
from heliostat.tasks.sources.data_files import fitting_sizes
from heliostat.traces import BankSummary
from heliostat.train import EvalReport, RunFailed, RunResult, run_eval, run_recipe, run_sample, run_sft
from heliostat.train.run import EXPECTED_FAILURES
from heliostat.types import Group

Overrides = Mapping[str, Any] | Sequence[str]
Rewards = Sequence[Any]
RecipeLike = str | Path | Recipe


def post_train(
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    run_dir: Path | str | None = None,
    *,
    model: str | Path | None = None,
    data: object = None,
    heldout: object = None,
    rewards: Rewards = (),
    profile: bool = False,
) -> RunResult:
    """Warm start, post-train, evaluate, save the model and write the report page.

    Functions travel to the verifier processes by value, so they may stand in the running script, a notebook or on
    standard input, be lambdas or closures, and close over whatever can be pickled.

    Args:
        recipe: a shipped recipe's name, a TOML path, or a ``Recipe``. Default: every setting at its default.
        overrides: settings by dotted key, ``{"objective.tau": 0.5}``, or command-line words.
        run_dir: where to work; an unfinished run of the same recipe there is continued. Default: a new folder.
        model: in place of the recipe's ``model.path``.
        data: rows with a ``prompt`` each: a list of dicts, a pandas or polars frame, a ``datasets.Dataset`` or a
            ``DatasetDict``, in place of the recipe's task. Columns of other names are named by ``task.prompt_column``.
            A tenth of the rows, 200 at most, is held out where nothing else is said.
        heldout: rows to evaluate on, of the same kinds. Default: the ``test`` or ``validation`` split of ``data`` if it
            has one, else some of its rows. Rows of ``data`` that ask the same questions are left out.
        rewards: functions with TRL's signature, ``f(prompts, completions, **columns) -> list[float]``, in place of the
            task's verifiers; names and tables of verifiers too, ``{"name": f, "weight": 0.5}``. Functions see the whole
            completion, and the reward is the weighted sum of scores (``task.shaped``) where nothing else is said.
        profile: after a few steps, print where their time and memory went.

    Returns:
        How it ended: ``status``, held-out results ``before`` and ``after``, and the run ``folder``.

    Raises:
        ConfigError: the recipe is wrong; nothing was started.
        RunFailed: the run ended before it was done; the exception has the reason and the run folder.
    """
    with registering() as given:
        checked, name = _given_recipe(given, recipe, overrides, (data, heldout), rewards, model)
        return _concluded(run_recipe(checked, _path(run_dir), name, profile=profile))


def sft(
    recipe: RecipeLike,
    data: object = None,
    overrides: Overrides = (),
    run_dir: Path | str | None = None,
) -> RunResult:
    """Run the recipe's supervised warm start alone, on its own task or on other worked solutions.

    Args:
        data: a file or folder, or rows as in ``post_train``: with ``prompt`` and ``completion`` (texts or chat
            messages), with whole conversations in ``messages``, or with the columns that the recipe names.

    Raises:
        ConfigError: the recipe is wrong.
        FileNotFoundError: there is no such data file.
        RunFailed: see ``post_train``.
    """
    checked, name = _recipe(recipe, overrides)
    with registering() as given:
        if isinstance(data, str | Path) and not Path(data).exists():
            raise FileNotFoundError(f"there is no data file {data}")
        path = _path(data) if data is None or isinstance(data, str | Path) else given.rows(data)
        return _concluded(run_sft(checked, path, _path(run_dir), name))


def evaluate(
    models: str | Path | Sequence[str | Path],
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
    """Held-out results of one model, or of two compared problem by problem.

    Args:
        data: as in ``post_train``; held out is what that holds out.
        heldout: as in ``post_train``.
        rewards: as in ``post_train``.

    Raises:
        ValueError: no model, or more than two.
        RunFailed: a verifier or the rollout server failed, or the model's numbers are not finite.
    """
    several = [str(models)] if isinstance(models, str | Path) else [str(model) for model in models]
    if len(several) not in (1, 2):
        raise ValueError(f"an evaluation takes one model, or two to compare, not {len(several)}")
    with registering() as given, _failures_raised():
        checked, _ = _given_recipe(given, recipe, overrides, (data, heldout), rewards)
        return run_eval(
            several, checked, num_problems=num_problems, num_samples=num_samples, greedy=greedy, settings=settings
        )


def sample(
    model: str | Path,
    recipe: RecipeLike | None = None,
    overrides: Overrides = (),
    *,
    prompt: str | None = None,
    num_samples: int = 4,
    settings: SamplingSettings | None = None,
) -> list[Group]:
    """Completions to look at, of a prompt or of a recipe's first held-out problems; not verified.

    Raises:
        ValueError: neither a prompt nor a recipe to take problems from.
    """
    if recipe is None and prompt is None:
        raise ValueError("sample needs a prompt, or a recipe to take problems from")
    checked = build_recipe({}, overrides) if recipe is None else _recipe(recipe, overrides)[0]
    with _failures_raised():
        return run_sample(str(model), checked, prompt=prompt, num_samples=num_samples, settings=settings)


def collect(
    model: str | Path,
    recipe: RecipeLike,
    bank: Path | str,
    overrides: Overrides = (),
    *,
    num_successes: int = 1,
    max_attempts: int = 256,
    num_problems: int | None = None,
) -> BankSummary:
    """Sample the recipe's training problems into a trace bank until each has its successes or is given up.

    Args:
        bank: file of the trace bank; a collection that was stopped goes on there.
        num_successes: successes after which a problem is done.
        max_attempts: attempts after which it is given up.
        num_problems: the first so many training problems. Default: all.

    Returns:
        What the bank holds now, with the histogram of attempts.
    """
    from heliostat.train.data.collect import Quota, run_collect

    checked, _ = _recipe(recipe, overrides)
    with _failures_raised():
        return run_collect(str(model), checked, Path(bank), Quota(num_successes, max_attempts), num_problems)


@contextmanager
def _failures_raised() -> Iterator[None]:
    """Raise what may end a run as ``RunFailed``, where there is no run to say it."""
    try:
        yield
    except EXPECTED_FAILURES as error:
        raise RunFailed(str(error)) from error


def _concluded(result: RunResult) -> RunResult:
    """The run's page is drawn; a run that failed is raised."""
    result = _with_page(result)
    if result.status == "failed":
        raise RunFailed(result.reason, result.folder, result)
    return result


def _with_page(result: RunResult) -> RunResult:
    """Draw the run's page; a disk that has no room for it must not hide how the run itself ended."""
    if not result.is_main_process:
        return result
    try:
        write_report([result.folder])
    except (OSError, ConfigError) as error:
        unwritten = f"the report could not be written ({error}); heliostat report {result.folder} makes it again"
        reason = "; ".join(filter(None, (result.reason, unwritten)))
        return replace(result, reason=reason)
    return result


def _given_recipe(
    given: Registry,
    recipe: RecipeLike | None,
    overrides: Overrides,
    data: tuple[object, object],
    rewards: Rewards,
    model: str | Path | None = None,
) -> tuple[Recipe, str]:
    """The recipe under what was given as objects, and both under the overrides.

    Args:
        data: rows to train on, and rows to hold out.
    """
    base, name = (build_recipe({}), "run") if recipe is None else _recipe(recipe, ())
    if model is not None:
        base = build_recipe(base.model_dump(mode="json"), {"model.path": str(model)})
    if isinstance(overrides, Mapping):
        overrides = named(given, overrides)
    if callable(rewards) or isinstance(rewards, str | Mapping):
        raise TypeError(f"rewards is a list, even of one: rewards=[{getattr(rewards, '__name__', '...')}]")
    tables = with_registered(base, given, data[0], rewards, data[1])
    return _fitted(tables, overrides) if data[0] is not None else build_recipe(tables, overrides), name


def _fitted(tables: dict[str, Any], overrides: Overrides) -> Recipe:
    """A recipe that uses all the rows that it was given, but for what the overrides say."""
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
    return load_recipe(str(recipe), overrides), Path(recipe).stem


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()

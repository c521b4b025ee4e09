"""One function per command, which imports the package that does the work when it is called.

Left out: reading arguments (``parser``), printing results (``tables``), and error messages (``entry``).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from heliostat.printed import say, visible_line

if TYPE_CHECKING:
    from heliostat.config import Recipe
    from heliostat.rollout import SamplingSettings
    from heliostat.train import RunResult

NUM_SHOWN_TRANSCRIPTS = 3
NUM_AUDITED_PROBLEMS = 20


def train(args: Namespace) -> int:
    """Run ``heliostat train``: post-train with a recipe."""
    from heliostat.config import load_recipe

    overrides = [*args.overrides, "--audit.enabled=false"] if args.no_audit else args.overrides
    load_recipe(args.recipe, overrides)  # refuse a bad recipe before torch is imported
    from heliostat.api import post_train

    if not args.watch:
        return _conclude(lambda: post_train(args.recipe, overrides, args.run_dir, profile=args.profile))
    from heliostat.report.live.process import WatchedRun

    with WatchedRun(say) as watched:
        return _conclude(
            lambda: post_train(args.recipe, overrides, args.run_dir, profile=args.profile, opened=watched.start)
        )


def sft(args: Namespace) -> int:
    """Run ``heliostat sft``: supervised training."""
    from heliostat.config import load_recipe

    load_recipe(args.recipe, args.overrides)
    from heliostat.api import sft

    return _conclude(lambda: sft(args.recipe, args.data, args.overrides, args.run_dir))


def _conclude(run: Callable[[], RunResult]) -> int:
    """Print the outcome of a run and its files. Ranks other than the main one only print why they failed."""
    from heliostat.cli.tables import print_outcome
    from heliostat.tracking import read_metrics
    from heliostat.train import RunFailed

    try:
        result = run()
    except RunFailed as failed:
        if failed.result is None:
            raise
        result = failed.result
    if result.is_main_process:
        rows = [row for row in read_metrics(result.folder / "transcripts.jsonl") if row["phase"] == "after"]
        print_outcome(result, rows[:NUM_SHOWN_TRANSCRIPTS], result.folder / "report.html")
    if result.reason:
        say(f"heliostat: {result.status}: {visible_line(result.reason)}", sys.stderr)
    return result.exit_code


def evaluate(args: Namespace) -> int:
    """Run ``heliostat eval``: evaluate one model, or compare two on the same problems."""
    from heliostat.cli.harness import check_options, evaluate_with

    check_options(args)
    if args.harness is not None:
        return evaluate_with(args)
    from heliostat.config import load_recipe

    recipe = load_recipe(_recipe_name(args.recipe, args.models), args.overrides)
    if args.json is not None:  # before hours of sampling, not after
        from heliostat.outputs import check_replaceable

        check_replaceable(args.json, '"comparison":', "an evaluation")
        args.json.parent.mkdir(parents=True, exist_ok=True)
    from heliostat.api import evaluate
    from heliostat.cli.tables import print_evaluations

    report = evaluate(
        args.models,
        recipe,
        num_problems=args.problems,
        num_samples=args.samples,
        greedy=args.greedy,
        settings=_sampling(recipe, args.temperature, args.top_p),
    )
    print_evaluations(report)
    if args.json is not None:
        from heliostat.storage import publish_file

        publish_file(args.json, report.to_json() + "\n")
    return 0


def _recipe_name(asked: str | None, models: Sequence[str]) -> str:
    """Return the recipe that was asked for, or that of the run that a model comes from.

    Raises:
        ConfigError: there is neither.
    """
    from heliostat.config import ConfigError
    from heliostat.run_models import recipe_of

    name = asked or recipe_of(models)
    if name is None:
        raise ConfigError(f"there is no run of {' or '.join(models)} to take the recipe from; name one with --recipe")
    return name


def _sampling(recipe: Recipe, temperature: float | None, top_p: float | None = None) -> SamplingSettings:
    from heliostat.rollout import SamplingSettings

    return SamplingSettings(
        temperature=recipe.rollout.temperature if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
    )


def sample(args: Namespace) -> int:
    """Run ``heliostat sample``: print completions."""
    from heliostat.config import build_recipe, load_recipe
    from heliostat.run_models import recipe_of

    if args.bank is not None:
        return _collect(args)
    name = args.recipe or recipe_of([args.model])
    recipe = load_recipe(name, args.overrides) if name else build_recipe({}, args.overrides)
    from heliostat.api import sample, sample_conversations
    from heliostat.cli.tables import print_completions, print_conversations

    source = recipe if name or args.prompt else None
    settings = _sampling(recipe, args.temperature)
    if source is not None and recipe.environment.enabled:
        sampled = sample_conversations(args.model, recipe, prompt=args.prompt, num_samples=args.num, settings=settings)
        print_conversations(sampled)
        return 0
    print_completions(sample(args.model, source, prompt=args.prompt, num_samples=args.num, settings=settings))
    return 0


def _collect(args: Namespace) -> int:
    """Run ``heliostat sample --bank``: fill a trace bank by rejection sampling."""
    from heliostat.config import ConfigError, load_recipe

    if args.prompt is not None:
        raise ConfigError("sample --bank takes its problems and verifiers from a recipe, and no --prompt")
    recipe = load_recipe(_recipe_name(args.recipe, [args.model]), args.overrides)
    if args.temperature is not None:
        rollout = recipe.rollout.model_copy(update={"temperature": args.temperature})
        recipe = recipe.model_copy(update={"rollout": rollout})
    from heliostat.api import collect
    from heliostat.cli.tables import print_bank

    summary = collect(
        args.model,
        recipe,
        args.bank,
        num_successes=args.successes,
        max_attempts=args.attempts,
        num_problems=args.problems,
    )
    print_bank(summary)
    return 0


def report(args: Namespace) -> int:
    """Run ``heliostat report``: write one page about run folders."""
    for run in args.runs:
        if not run.is_dir():
            raise FileNotFoundError(f"there is no run folder {run}")
    from heliostat.report import write_report

    say(write_report(args.runs, args.output, args.by))
    return 0


def diagnose(args: Namespace) -> int:
    """Run ``heliostat diagnose``: explain why a run went wrong."""
    from heliostat.report.diagnosis import diagnose

    say(diagnose(args.path).format())
    return 0


def list_tasks(args: Namespace) -> int:
    """Run ``heliostat tasks list``."""
    from heliostat.cli.tables import print_lines
    from heliostat.tasks import list_tasks

    own = {
        "file": "problems of your own: --task.path, --task.verifiers",
        "environment": "problems that the recipe's environment makes: --environment.name",
    }
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

    if recipe.environment.enabled:
        return _audit_environment(recipe, args.seed)
    tasks = [load_task(section, args.seed) for section in recipe.task]
    reports = [audit(task, heldout=True) for task in tasks]
    for report in reports:
        say(report.format())
    return 1 if any(report.hackable or report.refused for report in reports) else 0


def _audit_environment(recipe: Recipe, seed: int) -> int:
    """Audit a recipe's environment on the problems of each task, and the verifiers where it gives no reward."""
    from heliostat.tasks import audit, audit_environment, load_task
    from heliostat.tasks.environment_settings import environment_of

    spec, max_turns = environment_of(recipe.environment), recipe.environment.max_turns
    assert spec is not None  # the recipe has an environment
    is_clean = True
    for section in recipe.task:
        task = load_task(section, seed, recipe.environment)
        found = audit_environment(spec, task.train, max_turns=max_turns)
        say(found.format())
        is_clean = is_clean and found.passed
        if task.verifiers and not found.is_scored:
            report = audit(task, heldout=True)
            say(report.format())
            is_clean = is_clean and not (report.hackable or report.refused)
    return 0 if is_clean else 1


def recipes(args: Namespace) -> int:
    """Run ``heliostat recipes``: list recipes, or print one."""
    from heliostat.cli.tables import print_lines
    from heliostat.config import recipe_names, recipe_text

    if args.name is None:
        summaries = {name: recipe_text(name).partition("\n")[0].removeprefix("#").strip() for name in recipe_names()}
        print_lines("recipe", summaries)
    else:
        print(recipe_text(args.name), end="")
    return 0


def metrics(args: Namespace) -> int:
    """Run ``heliostat metrics``: print the glossary of metrics."""
    from heliostat.cli.tables import print_metrics
    from heliostat.tracking import METRICS

    print_metrics(METRICS)
    return 0

"""One function per command, which imports the package that does the work when it is called.

Left out: reading arguments (``parser``), printing results (``tables``), and error messages (``entry``).
"""

from __future__ import annotations

import json
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.cli.json_output import print_json
from heliostat.printed import say, visible_line

if TYPE_CHECKING:
    from heliostat.config import Recipe
    from heliostat.rollout import SamplingSettings
    from heliostat.train import RunResult

NUM_SHOWN_TRANSCRIPTS = 3


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
    file = args.json if isinstance(args.json, Path) else None
    if file is not None:  # before hours of sampling, not after
        from heliostat.outputs import check_replaceable

        check_replaceable(file, '"comparison":', "an evaluation")
        file.parent.mkdir(parents=True, exist_ok=True)
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
    if args.json is True:
        print_json(args, json.loads(report.to_json()))
        return 0
    print_evaluations(report)
    if file is not None:
        from heliostat.storage import publish_file

        publish_file(file, report.to_json() + "\n")
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
    from heliostat.config import ConfigError
    from heliostat.run_models import recipe_for, recipe_of

    if args.bank is not None:
        return _collect(args)
    if args.prompt is None and args.recipe is None and recipe_of([args.model]) is None:
        raise ConfigError("sample needs a prompt, or a recipe to take problems from")
    recipe = recipe_for([args.model], args.recipe, args.overrides)
    from heliostat.api import sample, sample_conversations
    from heliostat.cli.sampled_texts import completions_json, conversations_json
    from heliostat.cli.tables import print_completions, print_conversations

    settings = _sampling(recipe, args.temperature)
    if recipe.environment.enabled:
        sampled = sample_conversations(args.model, recipe, prompt=args.prompt, num_samples=args.num, settings=settings)
        if args.json:
            print_json(args, conversations_json(args.model, sampled))
        else:
            print_conversations(sampled)
        return 0
    groups = sample(args.model, recipe, prompt=args.prompt, num_samples=args.num, settings=settings)
    if args.json:
        print_json(args, completions_json(args.model, groups))
    else:
        print_completions(groups)
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
    if args.json:
        print_json(args, asdict(summary))
    else:
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

    found = diagnose(args.path)
    if args.json:
        print_json(args, asdict(found))
    else:
        say(found.format())
    return 0


def recipes(args: Namespace) -> int:
    """Run ``heliostat recipes``: list recipes, or print one."""
    from heliostat.cli.tables import print_lines
    from heliostat.config import recipe_names, recipe_text

    if args.name is not None:
        text = recipe_text(args.name)
        if args.json:
            print_json(args, {"recipe": args.name, "settings": tomllib.loads(text)})
        else:
            print(text, end="")
    else:
        summaries = {name: recipe_text(name).partition("\n")[0].removeprefix("#").strip() for name in recipe_names()}
        if args.json:
            print_json(args, {"recipes": summaries})
        else:
            print_lines("recipe", summaries)
    return 0


def metrics(args: Namespace) -> int:
    """Run ``heliostat metrics``: print the glossary of metrics."""
    from heliostat.cli.tables import print_metrics
    from heliostat.tracking import METRICS

    if args.json:
        print_json(args, {"metrics": {key: asdict(metric) for key, metric in METRICS.items()}})
    else:
        print_metrics(METRICS)
    return 0

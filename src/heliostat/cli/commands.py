"""What each command calls. One function per command; the room that does the work is imported inside it.

Left out: reading arguments (``parser``), how results look (``tables``), and error messages (``entry``).
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path


def train(args: Namespace) -> int:
    """``heliostat train``: post-train by a recipe."""
    from heliostat.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from heliostat.train import run_recipe

    return run_recipe(recipe, args.run_dir, Path(args.recipe).stem).exit_code


def sft(args: Namespace) -> int:
    """``heliostat sft``: supervised training."""
    from heliostat.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if args.data is not None and not args.data.is_file():
        raise FileNotFoundError(f"there is no data file {args.data}")
    from heliostat.train import run_sft

    return run_sft(recipe, args.data, args.run_dir, Path(args.recipe).stem).exit_code


def evaluate(args: Namespace) -> int:
    """``heliostat eval``: held-out problems for one model, or a paired comparison of two."""
    from heliostat.config import load_recipe

    if len(args.models) > 2:
        raise ValueError(f"eval takes one model, or two to compare, not {len(args.models)}")
    recipe = load_recipe(args.recipe, args.overrides)
    from heliostat.cli.tables import print_evaluations
    from heliostat.train import run_eval

    report = run_eval(
        args.models,
        recipe,
        num_samples=args.samples,
        num_problems=args.problems,
        greedy=args.greedy,
        temperature=args.temperature,
        top_p=args.top_p,
    )
    print_evaluations(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.summary(), indent=1) + "\n", encoding="utf-8")
    return 0


def sample(args: Namespace) -> int:
    """``heliostat sample``: completions to look at."""
    from heliostat.config import build_recipe, load_recipe

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else build_recipe({}, args.overrides)
    if args.recipe is None and args.prompt is None:
        raise ValueError("sample needs --prompt TEXT, or --recipe RECIPE to take problems from")
    from heliostat.cli.tables import print_completions
    from heliostat.train import run_sample

    print_completions(run_sample(args.model, recipe, prompt=args.prompt, num=args.num, temperature=args.temperature))
    return 0


def report(args: Namespace) -> int:
    """``heliostat report``: run folders to one page."""
    for run in args.runs:
        if not run.is_dir():
            raise FileNotFoundError(f"there is no run folder {run}")
    from heliostat.report import write_report

    print(write_report(args.runs, args.output))
    return 0


def list_tasks(args: Namespace) -> int:
    """``heliostat tasks list``."""
    from heliostat.tasks import list_tasks

    print(list_tasks())
    return 0


def show_task(args: Namespace) -> int:
    """``heliostat tasks show``."""
    from heliostat.tasks import show_task

    print(show_task(args.name))
    return 0


def audit_task(args: Namespace) -> int:
    """``heliostat tasks audit``: can the reward be had without solving anything?"""
    from heliostat.config import build_recipe, load_recipe, recipe_names

    if args.name in recipe_names() or args.name.endswith(".toml"):
        recipe = load_recipe(args.name, args.overrides)
    else:
        recipe = build_recipe({"task.name": args.name}, args.overrides)
    from heliostat.tasks import audit, load_task

    for section in recipe.task:
        print(audit(load_task(section, args.seed)))
    return 0


def recipes(args: Namespace) -> int:
    """``heliostat recipes``: the list, or one recipe's text."""
    from heliostat.cli.tables import print_recipes
    from heliostat.config import recipe_names, recipe_text

    if args.name is None:
        print_recipes({name: recipe_text(name) for name in recipe_names()})
    else:
        print(recipe_text(args.name), end="")
    return 0


def metrics(args: Namespace) -> int:
    """``heliostat metrics``: the glossary."""
    from heliostat.cli.tables import print_metrics
    from heliostat.tracking import METRICS

    print_metrics(METRICS)
    return 0

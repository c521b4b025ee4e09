"""``heliostat eval MODEL --with lm-eval TASK ...``: the command's options, and its results.

Left out: the harness itself (``heliostat.harness``).
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from heliostat.cli.json_output import print_json

HARNESS = "lm-eval"
MARK = '"heliostat_version":'  # in every file of results, which the command may replace
_OF_RECIPES = ("recipe", "samples", "greedy", "temperature", "top_p", "overrides")


def check_options(args: Namespace) -> None:
    """Refuse options of ``eval`` that do not belong together.

    Raises:
        ConfigError: another harness or no task is named, or an option would have no effect.
    """
    from heliostat.config import ConfigError

    if args.harness is None:
        if args.include_path is not None or args.chat_template:
            option = "--chat-template" if args.include_path is None else "--include-path"
            raise ConfigError(f"{option} is for tasks of lm-evaluation-harness; name some with --with {HARNESS} TASK")
        return
    name, *tasks = args.harness
    if name != HARNESS:
        raise ConfigError(f"--with takes {HARNESS} and its tasks, not '{name}'")
    if not tasks:
        raise ConfigError(f"--with {HARNESS} needs a task; `{HARNESS} ls tasks` lists those of the harness")
    if len(args.models) > 1:
        raise ConfigError(f"--with {HARNESS} measures one model at a time, not {' and '.join(args.models)}")
    for option in _OF_RECIPES:
        if getattr(args, option):
            asked = args.overrides[0].partition("=")[0] if option == "overrides" else f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{asked} has no effect on tasks of {HARNESS}, which bring their own problems and settings"
            )


def evaluate_with(args: Namespace) -> int:
    """Measure the model on the tasks of the harness; print its JSON, or a table, and write the JSON to a named file."""
    from heliostat.outputs import check_replaceable

    file = args.json if isinstance(args.json, Path) else None
    if file is not None:  # before hours of sampling, not after
        check_replaceable(file, MARK, "an evaluation with lm-eval")
    from heliostat.harness import evaluate_with_harness

    report = evaluate_with_harness(
        args.models[0],
        args.harness[1:],
        include_path=args.include_path,
        num_problems=args.problems,
        chat_template=args.chat_template,
    )
    if args.json is True:
        print_json(args, json.loads(report.to_json()))
        return 0
    from heliostat.cli.tables import print_harness_report

    print_harness_report(report)
    if file is not None:
        from heliostat.storage import publish_file

        file.parent.mkdir(parents=True, exist_ok=True)
        publish_file(file, report.to_json() + "\n")
    return 0

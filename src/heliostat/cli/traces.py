"""``heliostat traces``: import, export, show, stats and verify.

Left out: filling a bank by sampling (``heliostat sample --bank``) and by training (``traces.bank`` in a recipe).
"""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from heliostat.printed import say

if TYPE_CHECKING:
    from heliostat.traces import Problems, RowIssues


def import_traces(args: Namespace) -> int:
    """Run ``heliostat traces import``: exit code 1 if rows or files had to be skipped."""
    from heliostat.traces import Bank, ImportReport, import_rows, read_rows

    report = ImportReport()
    with _problems(args) as problems, Bank.open(args.bank) as bank:
        for source in args.sources:
            import_rows(bank, read_rows(source, report.issues), report, problems)
        say(
            f"{report.appended.num_new} new traces in {args.bank}, {report.appended.num_known} already there, "
            f"{report.issues.num_issues} rows or files skipped"
        )
    if problems is None:
        say("rewards were taken from the files; with --recipe, verifiers grade the traces again")
    else:
        say(f"{report.num_rejudged} rewards differed from the file; {report.num_reencoded} texts were encoded")
    return _complain(report.issues)


def export_traces(args: Namespace) -> int:
    """Run ``heliostat traces export``: exit code 1 if damaged rows were left out."""
    from heliostat.traces import Bank, RowIssues, export_bank

    issues = RowIssues()
    with Bank.open(args.bank, create=False) as bank:
        files = export_bank(bank, args.target, issues)
    say(f"{issues.num_read} traces in {len(files)} files under {args.target}")
    return _complain(issues)


def show_traces(args: Namespace) -> int:
    """Run ``heliostat traces show``: print intact traces turn by turn, in the order of writing.

    With a recipe, the ids of its model's tokenizer are printed as text. The exit code is 1 if rows are damaged.
    """
    from heliostat.cli.tables import print_trace
    from heliostat.models import decode
    from heliostat.traces import Bank, RowIssues, whole_traces

    issues = RowIssues()
    with _problems(args) as problems, Bank.open(args.bank, create=False) as bank:
        chosen = (trace for trace in whole_traces(bank, issues) if args.problem in (None, trace.problem_id))
        for trace in islice(chosen, args.num):
            readable = problems is not None and problems.tokenizer == trace.source.tokenizer
            print_trace(trace, partial(decode, problems.loaded) if problems is not None and readable else None)
    return _complain(issues)


def trace_stats(args: Namespace) -> int:
    """Run ``heliostat traces stats``: count intact traces, and the attempts per solved problem.

    The exit code is 1 if rows are damaged.
    """
    from heliostat.cli.tables import print_bank
    from heliostat.traces import Bank, RowIssues, summarise

    issues = RowIssues()
    with Bank.open(args.bank, create=False) as bank:
        summary = summarise(bank, issues)
    if args.json:
        say(json.dumps(asdict(summary), indent=1))
    else:
        print_bank(summary)
    return _complain(issues)


def verify_traces(args: Namespace) -> int:
    """Run ``heliostat traces verify``: exit code 1 if the file is damaged or a reward is wrong."""
    from heliostat.traces import Bank, check_bank, reverify, whole_traces

    with _problems(args) as problems, Bank.open(args.bank, create=False) as bank:
        issues = check_bank(bank)
        say(f"{issues.num_read} traces are intact, {issues.num_issues} issues")
        if problems is not None:
            damaged = issues.num_issues
            judged = reverify(whole_traces(bank, type(issues)()), problems, issues)
            say(
                f"{judged['judged']} rewards recomputed, {issues.num_issues - damaged} differ, "
                f"{judged['unknown']} traces belong to other problems"
            )
    return _complain(issues)


@contextlib.contextmanager
def _problems(args: Namespace) -> Iterator[Problems | None]:
    """Load the recipe's problems; ``None`` if no recipe was given."""
    if args.recipe is None:
        yield None
        return
    from heliostat.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from heliostat.train.data.problem_lookup import problems_of

    with problems_of(recipe) as problems:
        yield problems


def _complain(issues: RowIssues) -> int:
    for line in issues.lines():
        say(f"heliostat: {line}", sys.stderr)
    return 1 if issues.num_issues else 0

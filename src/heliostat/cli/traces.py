"""``heliostat traces``: import, export, show, stats and verify.

Left out: filling a bank by sampling (``heliostat sample --bank``) and by training (``traces.bank`` in a recipe).
"""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from heliostat.cli.json_output import print_json
from heliostat.printed import say

if TYPE_CHECKING:
    from heliostat.traces import Problems, RowIssues, Trace


def import_traces(args: Namespace) -> int:
    """Run ``heliostat traces import``: exit code 1 if rows or files had to be skipped."""
    from heliostat.traces import Bank, ImportReport, import_rows, read_rows

    report = ImportReport()
    with _problems(args) as problems, Bank.open(args.bank) as bank:
        for source in args.sources:
            import_rows(bank, read_rows(source, report.issues), report, problems)
    if args.json:
        print_json(args, {"bank": str(args.bank), "is_judged": problems is not None, **asdict(report)})
        return _complain(report.issues)
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
    if args.json:
        print_json(args, {"num_traces": issues.num_read, "target": args.target, "files": [str(file) for file in files]})
    else:
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
        whole = (trace for trace in whole_traces(bank, issues) if args.problem in (None, trace.problem_id))
        chosen = list(islice(whole, args.num))
        for trace in () if args.json else chosen:
            readable = problems is not None and problems.tokenizer == trace.source.tokenizer
            print_trace(trace, partial(decode, problems.loaded) if problems is not None and readable else None)
    if args.json:
        print_json(args, {"traces": [_to_json(trace) for trace in chosen]})
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
        print_json(args, asdict(summary))
    else:
        print_bank(summary)
    return _complain(issues)


def verify_traces(args: Namespace) -> int:
    """Run ``heliostat traces verify``: exit code 1 if the file is damaged or a reward is wrong."""
    from heliostat.traces import Bank, check_bank, reverify, whole_traces

    with _problems(args) as problems, Bank.open(args.bank, create=False) as bank:
        issues = check_bank(bank)
        damaged, num_intact = issues.num_issues, issues.num_read
        judged = reverify(whole_traces(bank, type(issues)()), problems, issues) if problems is not None else None
    num_wrong = issues.num_issues - damaged
    if args.json:
        rewards = None if judged is None else {**judged, "differ": num_wrong}
        print_json(args, {"num_intact": num_intact, "num_damaged": damaged, "rewards": rewards})
        return _complain(issues)
    say(f"{num_intact} traces are intact, {damaged} issues")
    if judged is not None:
        say(
            f"{judged['judged']} rewards recomputed, {num_wrong} differ, "
            f"{judged['unknown']} traces belong to other problems"
        )
    return _complain(issues)


def _to_json(trace: Trace) -> dict[str, Any]:
    """Return a trace as JSON values; ids and log-probabilities are for ``heliostat traces export``."""
    facts = {name: getattr(trace, name) for name in ("problem_id", "task", "reward", "success", "cut", "text")}
    turns = [asdict(turn) for turn in trace.turns]
    return {
        **facts,
        "num_sampled": trace.num_sampled,
        "stop_reason": str(trace.stop_reason),
        "turns": turns,
        "source": asdict(trace.source),
    }


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

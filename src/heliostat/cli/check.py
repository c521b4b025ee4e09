"""``heliostat check``: the promises that every objective keeps, tried on one of your own.

Left out: the checks (``heliostat.objectives.conformance``).
"""

from __future__ import annotations

from argparse import Namespace

from heliostat.cli.json_output import print_json
from heliostat.printed import say

FAILED = 1


def check(args: Namespace) -> int:
    """Run ``heliostat check``; the exit code is 1 if a check fails."""
    from heliostat.config import build_recipe
    from heliostat.objectives import named_objective
    from heliostat.objectives.conformance import CHECKS, failures

    found = failures(named_objective(build_recipe({"objective.name": args.name}, args.overrides).objective))
    failed = {name: sentence for name, sentence in found.items() if sentence}
    if args.json:
        print_json(args, {"name": args.name, "kind": "objective", "failed": failed, "checks": list(found)})
        return FAILED if failed else 0
    for each in CHECKS:
        said = (each.__doc__ or "").strip().removeprefix("Check that ").rstrip(".")
        say(f"{'FAILED' if found[each.__name__] else 'passed'}  {said}")
        if sentence := found[each.__name__]:
            say(f"        {sentence}")
    say(f"{args.name} keeps {len(found) - len(failed)} of {len(found)} promises of an objective")
    return FAILED if failed else 0

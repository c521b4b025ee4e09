"""``heliostat check``: the promises that training relies on, tried on a part of your own.

Left out: the promises and the kinds of parts (``suites``).
"""

from __future__ import annotations

from argparse import Namespace

from heliostat.cli.json_output import print_json
from heliostat.cli.suites import SUITES, find_kind
from heliostat.printed import say

FAILED = 1


def check(args: Namespace) -> int:
    """Run ``heliostat check``; the exit code is 1 if a promise is broken."""
    from heliostat.config import ConfigError

    kind = args.kind or find_kind(args.name)
    suite, named = SUITES[kind], f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if other := next((word for word in args.overrides if not word.startswith(f"--{suite.section}.")), ""):
        raise ConfigError(f"'{args.name}' is {named}, which takes --{suite.section}.key settings, not {other}")
    found = suite.run(args.name, args.overrides)
    failed = {name: sentence for name, (_, sentence) in found.items() if sentence}
    if args.json:
        print_json(args, {"name": args.name, "kind": kind, "failed": failed, "checks": list(found)})
        return FAILED if failed else 0
    for text, sentence in found.values():
        say(f"{'FAILED' if sentence else 'passed'}  {text}")
        if sentence:
            say(f"        {sentence}")
    say(f"{args.name} keeps {len(found) - len(failed)} of {len(found)} promises of {named}")
    return FAILED if failed else 0

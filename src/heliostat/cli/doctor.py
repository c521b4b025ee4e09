"""``heliostat doctor``: says what this installation and this machine lack, each with the way out.

Nothing here needs an installed package, so that it also runs where pydantic, rich or torch is broken.

Left out: looking (``installation``, ``machine``).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from heliostat.cli.health_line import HealthLine
from heliostat.cli.json_output import print_json
from heliostat.cli.runs import ROOT
from heliostat.printed import say

Sections = Mapping[str, Sequence[HealthLine]]


def doctor(args: Namespace) -> int:
    """Run ``heliostat doctor``: print every line; exit code 1 if something that is needed is broken."""
    found = look()
    broken = [line.name for lines in found.values() for line in lines if line.state == "broken"]
    if args.json:
        sections = {name: [asdict(line) for line in lines] for name, lines in found.items()}
        print_json(args, {"healthy": not broken, "broken": broken, **sections})
    else:
        _show(found, broken)
    return 1 if broken else 0


def look() -> Sections:
    """Collect the lines by section."""
    from heliostat.cli import machine

    here = [machine.cores(), machine.memory(), machine.bfloat16(), machine.disk(ROOT), machine.port()]
    return _packages() | {"machine": [*here, *machine.torch_and_gpus(), *machine.hub()]}


def _packages() -> dict[str, Sequence[HealthLine]]:
    try:
        from heliostat.cli import installation
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "packaging":
            raise
        lost = HealthLine("packaging", "missing, so that no version can be compared", "broken", "pip install packaging")
        return {"packages": [lost]}
    own = [installation.python(), installation.own()]
    return {
        "packages": [*own, *installation.core(), *installation.conflicts()],
        "extras": installation.extras(),
    }


def _show(found: Sections, broken: Sequence[str]) -> None:
    for section, lines in found.items():
        say(section)
        for line in lines:
            say(f"  {line.line()}")
    say(f"broken: {', '.join(broken)}" if broken else "everything that is needed works")

"""``heliostat runs``: a table of runs, or JSON.

Left out: looking at the folders (``heliostat.report.listing``).
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.cli.json_output import print_json
from heliostat.printed import say, visible_line

if TYPE_CHECKING:
    from heliostat.report.listing import Listed
    from heliostat.report.runs.glance import Glance

ROOT = Path("runs")
"""Folder that runs are written to if none is named."""
AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def runs(args: Namespace) -> int:
    """Run ``heliostat runs``."""
    from heliostat.report.listing import list_runs

    folders = args.folders or [path for path in [ROOT] if path.is_dir()]
    listed = list_runs(folders)
    if args.json:
        print_json(args, {"runs": [one.to_json() for one in listed]})
    elif listed:
        _print_table(listed)
    else:
        named = ", ".join(map(str, args.folders)) or f"{ROOT}/"
        say(f"there are no runs in {named}; heliostat train demo starts one")
    return 0


def _print_table(listed: list[Listed]) -> None:
    from rich import box
    from rich.table import Table

    from heliostat.cli.tables import Page, Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("run", overflow="fold", style="bold")
    for name in ("status", "step", "held-out pass@1 [95%]", "size", "changed"):
        table.add_column(name)
    now = time.time()
    for one in listed:
        run = one.run
        table.add_row(
            Text(str(one.folder)),
            Text(_status(one)),
            "" if run is None or run.status == "broken" else run.progress,
            "" if run is None else _verdict(run),
            _size(one.num_bytes),
            f"{_age(max(0.0, now - one.changed))} ago",
        )
    Page().print(table)


def _status(one: Listed) -> str:
    if one.run is not None and one.run.status == "broken":
        return f"broken: {visible_line(one.run.reason)}"
    return one.status


def _verdict(run: Glance) -> str:
    before, after = run.held_out("before"), run.held_out("after")
    sides = [f"{before.value:.1%}"] if before else []
    if after:
        sides.append(f"{after.value:.1%} [{after.low:.1%}, {after.high:.1%}]")
    return " -> ".join(sides) + (" -> ?" if before and not after else "")


def _size(num_bytes: int) -> str:
    for unit, name in SIZES:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} B"


def _age(seconds: float) -> str:
    unit, name = next((pair for pair in AGES if seconds >= pair[0]), AGES[-1])
    return f"{seconds / unit:.0f} {name}"

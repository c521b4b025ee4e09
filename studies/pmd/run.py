"""What tau, the baseline and the clip do when rollouts get stale: PMD against the clipped family on a task of seconds.

    OMP_NUM_THREADS=1 python studies/pmd/run.py --work /tmp/pmd    # every run that results.jsonl lacks, then the pages
    python studies/pmd/run.py --only-draw                            # tables and plots again, from results.jsonl

Can be stopped at any time: each finished run is one line of results.jsonl, and the next call goes on from there. The
design is in arms.py, one run in arena.py, tables in analysis.py, plots in plots.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arms import Done

HERE = Path(__file__).parent
RESULTS, CONFIRMATION = HERE / "results.jsonl", HERE / "confirmation.jsonl"
IMAGES = HERE.parents[1] / "docs" / "images" / "pmd-study"


def read() -> Done:
    from arms import Done

    return Done(lines(RESULTS))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def carry_on(work: Path, minutes: float) -> None:
    """Make the missing runs in the order of the plan, for at most this long."""
    from arena import Arena
    from arms import final, plan

    done, until = read(), time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        arenas: dict[str, Arena] = {}
        while time.monotonic() < until:
            run = next((run for run in plan(done) if done.find(run) is None), None)
            if run is None:
                break
            if run.arm.start not in arenas:
                arenas[run.arm.start] = stack.enter_context(Arena(work, run.arm.start))
            row = arenas[run.arm.start].carry_out(run)
            check_start(done, row)
            done.add(row)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            num = len(done.rows)
            print(f"{num}: {run.arm} lr={run.lr:g} seed={run.seed} -> {final(row):.3f}", file=sys.stderr)


def check_start(done: Done, row: dict[str, Any], results: Path = RESULTS) -> None:
    """Refuse to go on from another start model than that of the stored runs: their cells could not be compared."""
    known = next((other for other in done.rows if other["start"] == row["start"]), row)
    ours, theirs = (float(one["curve"][0]["heldout"]) for one in (row, known))
    if abs(ours - theirs) > 1e-4:
        raise SystemExit(
            f"the start model '{row['start']}' of this folder solves {ours:.4f} of the held-out problems, that of the "
            f"stored runs {theirs:.4f}; take its runs out of {results.name} to make all of them again from this one"
        )


def draw() -> None:
    """Write tables.md and the plots."""
    from analysis import sections
    from plots import draw_all

    done = read()
    confirmation = lines(CONFIRMATION)
    head = "Written by `python studies/pmd/run.py --only-draw` from results.jsonl and confirmation.jsonl: "
    text = [
        head + f"{len(done.rows)} and {len(confirmation)} runs. Means over fresh seeds with 95% bootstrap intervals.",
        "",
    ]
    for title, body in sections(done, confirmation).items():
        if body.count("\n") > 1:  # more than a head
            text += [f"## {title}", "", body, ""]
    (HERE / "tables.md").write_text("\n".join(text))
    draw_all(done, IMAGES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the problems and the two warm-started models")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    parser.add_argument("--only-draw", action="store_true", help="tables and plots again, from results.jsonl")
    parser.add_argument("--only-run", action="store_true", help="no tables and plots at the end")
    options = parser.parse_args()
    if not options.only_draw:
        if options.work is None:
            parser.error("--work is needed: a folder outside the repository for problems and start models")
        carry_on(options.work, options.minutes)
    if not options.only_run:
        draw()

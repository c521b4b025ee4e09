"""Agents of a few turns: which objective, which tau, prefixes or not, and what the guard sees.

    OMP_NUM_THREADS=1 python studies/agents/run.py objectives --work /tmp/agents    # and: scales, prefixes, collapse
    python studies/agents/run.py page                                               # tables and figure again

Can be stopped at any time: each finished run is one line of a results file, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from arms import Done, Run, final, objectives, reasons, scales

HERE = Path(__file__).parent
IMAGE = HERE.parents[1] / "docs" / "images" / "agents" / "study.svg"
Plan = Callable[[Done], Iterator[Run]]
PLANS: dict[str, Plan] = {"objectives": objectives, "scales": scales, "reasons": reasons}


def lines(part: str) -> list[dict[str, Any]]:
    """Read the finished runs of a part."""
    path = HERE / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(part: str, row: dict[str, Any]) -> None:
    """Add a finished run."""
    with (HERE / f"{part}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def carry_on(part: str, work: Path, until: float) -> None:
    """Make the missing runs in the order of the plan, until this time."""
    from arena import Arena

    done = Done(lines(part))
    with ExitStack() as stack:
        arenas: dict[str, Arena] = {}
        while time.monotonic() < until:
            run = next((run for run in PLANS[part](done) if done.find(run) is None), None)
            if run is None:
                break
            world = run.arm.world
            if world not in arenas:
                arenas[world] = stack.enter_context(Arena(work, world))
            check_start(done, world, arenas[world].before)
            row = arenas[world].carry_out(run)
            done.add(row)
            append(part, row)
            print(
                f"{len(done.rows)}: {world} {run.arm.method} x{run.arm.updates_per_batch} lr={run.lr:g} "
                f"seed={run.seed}: {row['before']:.3f} -> {final(row):.3f} in {row['cpu_s']} s",
                file=sys.stderr,
            )


def check_start(done: Done, world: str, before: float) -> None:
    """Refuse to go on from another start than that of the stored runs: their cells could not be compared."""
    known = next((float(row["before"]) for row in done.rows if row["world"] == world), before)
    if abs(known - before) > 1e-6:
        raise SystemExit(
            f"the start of {world} in this folder succeeds at {before:.4f}, that of the stored runs at {known:.4f}"
        )


def carry_on_prefixes(work: Path, until: float) -> None:
    """Make the missing runs of question 3."""
    from prefixes import PrefixArena, plan

    rows = lines("prefixes")
    with ExitStack() as stack:
        arena = None
        while time.monotonic() < until:
            done = {(row["arm"], row["lr"], row["seed"]) for row in rows}
            key = next((key for key in plan(rows) if key not in done), None)
            if key is None:
                break
            arena = arena or PrefixArena(work, stack)
            row = arena.carry_out(key)
            rows.append(row)
            append("prefixes", row)
            print(f"{len(rows)}: {key}: {row['before']:.3f} -> {row['after']:.3f} in {row['cpu_s']} s", file=sys.stderr)


def carry_on_collapse(work: Path, until: float) -> None:
    """Make the missing runs of question 4."""
    from collapse import carry_out, missing

    rows = lines("collapse")
    while time.monotonic() < until and (key := missing(rows)) is not None:
        row = carry_out(key, work)
        rows.append(row)
        append("collapse", row)
        print(f"{len(rows)}: {key}: {row['status']}, {row['after']} in {row['cpu_s']} s", file=sys.stderr)


def write_page() -> None:
    """Write tables.md and the figure."""
    from analysis import draw, tables

    parts = [lines(part) for part in ("objectives", "scales", "reasons", "prefixes", "collapse")]
    (HERE / "tables.md").write_text(tables(*parts))
    draw(parts[0], parts[1], parts[4], IMAGE)


def main() -> None:
    """Make runs, or the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PLANS, "prefixes", "collapse", "page"))
    parser.add_argument("--work", type=Path, default=Path("agents-study"), help="folder of start models")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after this many minutes")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if options.part == "prefixes":
        carry_on_prefixes(options.work, until)
    elif options.part == "collapse":
        carry_on_collapse(options.work, until)
    elif options.part == "page":
        write_page()
    else:
        carry_on(options.part, options.work, until)


if __name__ == "__main__":
    main()

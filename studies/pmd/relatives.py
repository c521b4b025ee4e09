"""The four relatives of PMD-mean (TPO, LPO, MaxRL, DRPO) beside PMD-mean and GRPO, all tuned on one small grid.

    OMP_NUM_THREADS=1 python studies/pmd/relatives.py --work /tmp/relatives   # every run that relatives.jsonl lacks
    python studies/pmd/relatives.py --only-write                               # relatives.md again

Can be stopped at any time, as run.py. The runs are those of the study (arena.py), from a start of their own: PMD-mean
and GRPO are run again, so that nothing is compared across starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arms import Arm, Done, Run

RESULTS, PAGE = (Path(__file__).with_name(f"relatives.{end}") for end in ("jsonl", "md"))
FIRST = Path(__file__).with_name("relatives-first-start.jsonl")
"""181 runs of the same plan from another start, which is lost."""
RATES = (1e-4, 3e-4, 1e-3)
COUNTS = (64, 16, 1)
SCREEN_SEED = 0
METHODS: Mapping[str, tuple[dict[str, object], ...]] = {
    "pmd-mean": ({"tau": 0.2}, {"tau": 0.05}),
    "grpo": ({"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.4, "clip_high": 0.4}),
    "tpo": ({"eta": 1.0}, {"eta": 0.5}),
    "lpo": ({"projection": "forward"}, {"projection": "reverse"}),
    "maxrl": ({"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.4, "clip_high": 0.4}),
    "drpo": ({"delta": 12.5}, {"delta": 0.2}),
}
ACTS_AT_ONE = ("tpo", "lpo")
"""Methods whose setting changes the first update of a batch; that of the others acts from the second one on."""


def settings_at(method: str, count: int) -> tuple[dict[str, object], ...]:
    """The settings of a method that differ at this number of updates per batch."""
    return METHODS[method] if count > 1 or method in ACTS_AT_ONE else METHODS[method][:1]


def cells(method: str, count: int) -> list[tuple[Arm, float]]:
    """The grid of a method: every setting at every learning rate."""
    from arms import Arm

    return [(Arm(method, each, count), rate) for each in settings_at(method, count) for rate in RATES]


def plan(done: Done) -> Iterator[Run]:
    """At each number of updates per batch: the same trials for every method, then fresh seeds at the best of them."""
    from arms import FRESH_SEEDS, Run

    for count in COUNTS:
        yield from (Run(arm, rate, SCREEN_SEED) for method in METHODS for arm, rate in cells(method, count))
        for seed in FRESH_SEEDS:
            chosen = [best(method, count, done) for method in METHODS]
            yield from (Run(*cell, seed) for cell in chosen if cell)


def best(method: str, count: int, done: Done) -> tuple[Arm, float] | None:
    """The cell with the highest final success of its screen, or ``None`` while that has gaps."""
    from arms import Run, final

    grid = cells(method, count)
    rows = [done.find(Run(*cell, SCREEN_SEED)) for cell in grid]
    found = [final(row) for row in rows if row]
    return grid[found.index(max(found))] if len(found) == len(grid) else None


def finals(method: str, count: int, done: Done) -> dict[int, float]:
    """Final success by fresh seed at the chosen cell."""
    from arms import FRESH_SEEDS, Run, final

    cell = best(method, count, done)
    rows = {seed: done.find(Run(*cell, seed)) for seed in FRESH_SEEDS} if cell else {}
    return {seed: final(row) for seed, row in rows.items() if row}


def page(done: Done) -> str:
    """Write the tables: chosen cells with fresh seeds, differences to PMD-mean, and the screen of each choice."""
    from analysis import cell, table

    text = [
        "Written by `python studies/pmd/relatives.py --only-write` from relatives.jsonl: "
        f"{len(done.rows)} of {num_planned()} runs. Means over fresh seeds with 95% bootstrap intervals, differences "
        "seed by seed."
    ]
    for count in COUNTS:
        rows: list[Sequence[str]] = []
        ours = finals("pmd-mean", count, done)
        for method in METHODS:
            chosen, found = best(method, count, done), finals(method, count, done)
            if chosen:
                gaps = [found[seed] - ours[seed] for seed in found if seed in ours]
                less = "–" if method == "pmd-mean" else cell(gaps)
                rows.append([chosen[0].method, f"{chosen[1]:g}", cell(list(found.values())), less])
        if rows:
            text += ["", f"## Updates per batch: {count}", ""]
            text += [table(["method, as chosen", "learning rate", "success", "minus pmd-mean"], rows)]
            text += ["", f"Screen (seed {SCREEN_SEED}) by learning rate:", "", screen(count, done)]
    return "\n".join([*text, "", "## Both starts", "", both_starts(read(FIRST), done)]) + "\n"


def both_starts(first: Done, second: Done) -> str:
    """Write the differences to PMD-mean over the seeds of both starts, with 95% t-intervals."""
    from analysis import table
    from scipy import stats

    rows: list[Sequence[str]] = []
    for method in METHODS:
        if method == "pmd-mean":
            continue
        cells = [method]
        for count in COUNTS:
            pairs = [(finals(method, count, done), finals("pmd-mean", count, done)) for done in (first, second)]
            gaps = [mine[seed] - ours[seed] for mine, ours in pairs for seed in mine if seed in ours]
            mean = sum(gaps) / max(1, len(gaps))
            half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else float("nan")
            cells.append(f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] ({len(gaps)})")
        rows.append(cells)
    return table(["minus pmd-mean (seeds)", *(f"{count} per batch" for count in COUNTS)], rows)


def num_planned() -> int:
    """Runs of the whole plan, whichever cells are chosen."""
    from arms import FRESH_SEEDS

    return sum(len(cells(method, count)) + len(FRESH_SEEDS) for count in COUNTS for method in METHODS)


def screen(count: int, done: Done) -> str:
    """Write the final success of every cell of the grid."""
    from analysis import table
    from arms import Run, final

    rows: dict[str, list[str]] = {}
    for method in METHODS:
        for arm, rate in cells(method, count):
            row = done.find(Run(arm, rate, SCREEN_SEED))
            rows.setdefault(arm.method, []).append(f"{final(row):.3f}" if row else "–")
    return table(["method", *(f"{rate:g}" for rate in RATES)], [[name, *row] for name, row in rows.items()])


def read(path: Path = RESULTS) -> Done:
    from arms import Done

    lines = path.read_text().splitlines() if path.exists() else []
    return Done(json.loads(line) for line in lines)


def carry_on(work: Path, minutes: float) -> None:
    """Make the missing runs in the order of the plan, for at most this long."""
    from arena import Arena
    from arms import final
    from run import check_start

    done, until = read(), time.monotonic() + 60 * minutes
    with Arena(work, "low") as arena:
        while time.monotonic() < until:
            run = next((run for run in plan(done) if done.find(run) is None), None)
            if run is None:
                break
            row = arena.carry_out(run)
            check_start(done, row, RESULTS)
            done.add(row)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{len(done.rows)}: {run.arm.method} x{run.arm.updates_per_batch} lr={run.lr:g} seed={run.seed} -> "
                f"{final(row):.3f}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the problems and the warm-started model")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    parser.add_argument("--only-write", action="store_true", help="the page again, from relatives.jsonl")
    options = parser.parse_args()
    if not options.only_write:
        if options.work is None:
            parser.error("--work is needed: a folder outside the repository for problems and the start model")
        carry_on(options.work, options.minutes)
    PAGE.write_text(page(read()))

"""PrefixRL on tasks whose success rate is known exactly: arms from one weak start, at equal updates, by FLOPs spent.

    OMP_NUM_THREADS=1 python studies/prefixrl/run.py --work /tmp/prefixrl    # every run that results.jsonl lacks
    python studies/prefixrl/run.py --only-draw                                 # tables and plots from results.jsonl

Can be stopped at any time: each finished run is one line of results.jsonl, and the next call goes on from there. Tasks
are in tasks.py, arms in arms.py, a task's start in arena.py, one run in runs.py, tables in analysis.py and plots in
plots.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from analysis import best_rate, runs_of, tasks_of, write_tables
from plots import draw_pictures

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
IMAGES = HERE.parents[1] / "docs" / "images" / "prefix-study"
Row = Mapping[str, Any]


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def next_run(done: Sequence[Row], tasks: Sequence[str], named: Sequence[str]) -> tuple[str, str, float, int] | None:
    """Task, arm, rate and seed of the first run that is missing: trials of all rates, then the seeds, arm by arm."""
    from arms import ARMS, OF_TASK, RATES, TRIAL_SEED, seeds_of

    for task in tasks:
        arms = [ARMS[name] for name in OF_TASK[task] if name in named or not named]
        tried = [(task, arm.name, lr, TRIAL_SEED) for lr in RATES[task] for arm in arms if arm.trials(task) == arm.name]
        missing = next((run for run in tried if find(done, *run) is None), None)
        if missing is not None:
            return missing
        best = {arm.name: best_rate(done, task, arm.trials(task)) for arm in arms}
        wanted = [(task, arm.name, best[arm.name], seed) for arm in arms for seed in seeds_of(task, arm.name)]
        wanted.sort(key=lambda run: run[3])
        missing = next((run for run in wanted if find(done, *run) is None), None)
        if missing is not None:
            return missing
    return None


def find(done: Sequence[Row], task: str, arm: str, lr: float, seed: int) -> Row | None:
    wanted = {"task": task, "arm": arm, "lr": lr, "seed": seed}
    return next((row for row in done if all(row.get(key) == value for key, value in wanted.items())), None)


def carry_on(work: Path, tasks: Sequence[str], arms: Sequence[str], minutes: float) -> None:
    """Make the missing runs in the order of the plan, for at most this long."""
    from arena import Arena
    from arms import ARMS
    from runs import Run

    until = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        arenas: dict[str, Arena] = {}
        while time.monotonic() < until:
            done = read()  # another process may be at other tasks or arms
            wanted = next_run(done, tasks, arms)
            if wanted is None:
                break
            task, arm, lr, seed = wanted
            if task not in arenas:
                arenas[task] = stack.enter_context(Arena(work / task, task))
                if not any(row.get("task") == task and "num_hard" in row for row in done):
                    write(arenas[task].start)
            began = time.process_time()
            row = Run(arenas[task], ARMS[arm], lr, seed).carry_out()
            write(row)
            print(
                f"{task} {arm} lr={lr:g} seed={seed}: {row['curve'][-1]['train']:.3f} in "
                f"{time.process_time() - began:.0f} CPU s",
                file=sys.stderr,
            )


def write(row: Row) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(rounded(row)) + "\n")


def rounded(value: Any) -> Any:
    """Five significant digits: results are kept as text."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for problems, start models and trace banks")
    parser.add_argument("--tasks", nargs="*", default=["T1", "T2", "T3", "T4"])
    parser.add_argument("--arms", nargs="*", default=[], help="only these; several processes can share a task so")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    parser.add_argument("--only-draw", action="store_true", help="tables and plots again, from results.jsonl")
    options = parser.parse_args()
    if options.only_draw:
        rows = read()
        write_tables(rows, HERE / "tables.md")
        draw_pictures([task for task in tasks_of(rows) if runs_of(rows, task, "prefix-only")], rows, IMAGES)
    elif options.work is None:
        parser.error("--work is needed: a folder outside the repository for problems, start models and banks")
    else:
        carry_on(options.work, options.tasks, options.arms, options.minutes)

"""Race against cvxpy (SCS, Clarabel) and GGLasso on random sparsity patterns, in CPU seconds, one thread each.

Every library runs in a process of its own, all from this one run, and is judged by the same KKT residual. Reported are
medians of ``time.process_time`` over repeats, the process's peak memory so far, and ratios to ours. Install and run:

    python -m venv peers && peers/bin/pip install torch && peers/bin/pip install -e '.[linalg,linalg-peers]'
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/inverse_decomposition/race.py
    python benchmarks/inverse_decomposition/race.py --table        # the table again, from results/race.json

Clarabel at n = 100 takes about 5 CPU minutes and 5 GB; ``--without Clarabel`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, LARGEST, REPEATS
from problems import kkt_residual, random_problem

SIZES = (10, 30, 50, 100, 200, 300, 1000)
WARM_UP = 12  # rows of the problem that compiles kernels and loads libraries
RESULTS = Path(__file__).parent / "results" / "race.json"


def measure(name: str, n: int, seed: int) -> dict[str, Any]:
    """One contender on one problem, in this process."""
    import torch

    torch.set_num_threads(1)
    solve, problem = CONTENDERS[name], random_problem(n, seed)
    solve(random_problem(WARM_UP, seed))
    seconds = []
    for _ in range(REPEATS[name] if n < 1000 else 1):
        start = time.process_time()
        precision = solve(problem)
        seconds.append(time.process_time() - start)
    return {
        "contender": name,
        "n": n,
        "parameters": problem.num_parameters,
        "cpu_s": statistics.median(seconds),
        "all_cpu_s": seconds,
        "kkt_residual": kkt_residual(problem, precision),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _attempt(pool: ProcessPoolExecutor, name: str, n: int, seed: int) -> dict[str, Any]:
    try:
        return pool.submit(measure, name, n, seed).result()
    except BrokenProcessPool:
        return {"contender": name, "n": n, "failure": "ended by the system"}


def run(without: list[str], largest: int, seed: int) -> None:
    records: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    families = {name.split()[0]: [k for k in CONTENDERS if k.split()[0] == name.split()[0]] for name in CONTENDERS}
    for names in families.values():
        with ProcessPoolExecutor(1, mp_context=context) as pool:  # one process a library: kernels are compiled once
            for name, n in [(name, n) for name in names if name not in without for n in SIZES if n <= LARGEST[name]]:
                if n <= largest:
                    records.append(_attempt(pool, name, n, seed))
                    print(json.dumps(records[-1]), flush=True)
                    _save(records, seed)


def _save(records: list[dict[str, Any]], seed: int) -> None:
    packages = ("torch", "numpy", "scipy", "cvxpy", "scs", "clarabel", "gglasso")
    machine = {"processor": platform.processor() or platform.machine(), "load_at_end": os.getloadavg()[0]}
    versions = {name: metadata.version(name) for name in packages}
    payload = {"machine": machine, "versions": versions, "seed": seed, "records": records}
    RESULTS.write_text(json.dumps(payload, indent=1) + "\n")


def table(path: Path = RESULTS) -> str:
    """Markdown: CPU seconds (ratio to ours), residual."""
    records = json.loads(path.read_text())["records"]
    cell = {(record["contender"], record["n"]): record for record in records}
    lines = ["| n (parameters) | " + " | ".join(CONTENDERS) + " |", "|--:" * (len(CONTENDERS) + 1) + "|"]
    for n in sorted({record["n"] for record in records}):
        own = cell["heliostat", n]
        row = [f"{n} ({own['parameters']})"]
        for name in CONTENDERS:
            record = cell.get((name, n))
            if record is None or "failure" in record:
                row.append("–" if record is None else record["failure"])
                continue
            ratio = "" if name == "heliostat" else f" (×{record['cpu_s'] / own['cpu_s']:,.0f})"
            row.append(f"{record['cpu_s']:.3g} s{ratio}, {record['kkt_residual']:.0e}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table from the committed results and stop")
    parser.add_argument("--without", nargs="*", default=[], choices=list(CONTENDERS), help="contenders to leave out")
    parser.add_argument("--largest", type=int, default=max(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.without, arguments.largest, arguments.seed)
    print(table())

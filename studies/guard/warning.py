"""The time at which the head's gradient, λ̂ and entropy show the recorded faults, at equal false alarms.

    OMP_NUM_THREADS=1 python studies/guard/warning.py [--minutes 10]    resumable: one row per run in warning.jsonl
    python studies/guard/warning.py --table

The faults are those of ``run``, without the guard. Each signal is judged by the distance from its rolling median in
robust standard deviations; its threshold is the largest distance in healthy runs of other seeds, so that each signal
has the same number of false alarms there, none.

Left out: what the guard does about a fault (``run``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from faults import FAULTS, FIRST, injected
from run import SETTINGS, problems

from heliostat.config import build_recipe
from heliostat.monitors import Reference, RobustZ
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe

STORED = Path(__file__).parent / "warning.jsonl"
SIGNALS = {
    "head gradient": "optim/head_grad_norm",
    "whole gradient": "optim/grad_norm",
    "λ̂": "policy/lambda_hat",
    "entropy": "policy/entropy",
}
SEEDS, HEALTHY_SEEDS = (0, 1), (30, 32, 33, 34)
Row = dict[str, Any]


def one(fault: str, seed: int) -> Row:
    """One run without the guard; its signals by step."""
    with tempfile.TemporaryDirectory() as name, injected(*FAULTS[fault]):
        folder = Path(name)
        task = {"name": "file", "path": str(problems(folder)), "answer_column": "answer",
                "verifiers": [{"name": "numeric"}], "num_train": 70, "num_heldout": 30}  # fmt: skip
        off = {"run.seed": seed, "guard.mode": "off", "eval.final_samples": 1}
        result = run_recipe(build_recipe({"task": [task]}, SETTINGS | off), folder / "run", "faults")
        if result.status == "interrupted":
            raise KeyboardInterrupt
        metrics = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["step"] > 0]
    signals = {key: [_short(row.get(key)) for row in metrics] for key in SIGNALS.values()}
    return {"fault": fault, "seed": seed, "status": result.status, "signals": signals}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def distances(values: list[float | None]) -> list[float]:
    """Return each value's distance from the median of the fifty before it, in robust standard deviations."""
    detector = RobustZ(Reference(50, rolling=True, least_spread=1e-6), threshold=1e9)
    readings = [None if value is None else detector.update(value) for value in values]
    return [0.0 if reading is None else abs(reading.statistic) for reading in readings]


def thresholds(rows: list[Row]) -> dict[str, float]:
    """Return by signal the largest distance in the healthy runs that set it."""
    healthy = [row for row in rows if row["fault"] == "none" and row["seed"] in HEALTHY_SEEDS]
    return {name: max(max(distances(row["signals"][key])) for row in healthy) for name, key in SIGNALS.items()}


def warned(row: Row, key: str, threshold: float) -> str:
    """Return the steps from the fault to the first alarm, or a dash."""
    late = enumerate(distances(row["signals"][key])[FIRST - 1 :])
    return next((str(after) for after, distance in late if distance > threshold), "–")


def table(rows: list[Row]) -> str:
    """Steps to the first alarm of each signal, by fault and seed."""
    limits = thresholds(rows)
    lines = ["| fault | " + " | ".join(SIGNALS) + " |", "| --- " * (1 + len(SIGNALS)) + "|"]
    for fault in FAULTS:
        of_fault = sorted((row for row in rows if row["fault"] == fault and row["seed"] in SEEDS), key=_seed)
        cells = [", ".join(warned(row, key, limits[name]) for row in of_fault) for name, key in SIGNALS.items()]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    said = ", ".join(f"{name} {limit:.1f}" for name, limit in limits.items())
    return "\n".join([*lines, "", f"Thresholds, in robust standard deviations: {said}."])


def _seed(row: Row) -> int:
    return int(row["seed"])


def stored() -> list[Row]:
    return [json.loads(line) for line in STORED.read_text().splitlines()] if STORED.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes after which no new run is begun")
    parser.add_argument("--table", action="store_true", help="print the table of the stored runs only")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    wanted = [("none", seed) for seed in HEALTHY_SEEDS] + [(fault, seed) for seed in SEEDS for fault in FAULTS]
    done = {(row["fault"], row["seed"]) for row in stored()}
    for fault, seed in wanted:
        if args.table or (fault, seed) in done or time.monotonic() > until:
            continue
        row = one(fault, seed)
        with STORED.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(stored()))


if __name__ == "__main__":
    main()

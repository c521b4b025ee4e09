"""What sampling ahead buys on two cores: wall and CPU seconds of a step, and what is learned.

    python benchmarks/ahead/two_cores.py --work /tmp/ahead      # on a quiet machine; goes on where its results end

The demo's recipe behind its warm start (made once), 12 steps, 1 and 4 updates per step:

    one       one thread samples and trains in turn
    two       two threads sample (two workers) and train (two torch threads) in turn, as the demo comes
    ahead     one thread trains while another samples, rollouts at most one step old

**Prediction, before running.** With R and U the seconds of one thread for rollouts and update, ``one`` takes R + U and
``ahead`` the larger of the two; ``two`` takes R / 1.3 + U / 1.5. R and U are within a factor of 1.5 of each other here,
so ``ahead`` is 1.1 to 1.3 times faster than ``two`` and 1.6 to 1.9 times faster than ``one``. CPU seconds are those of
``one`` within a tenth. 4 updates take as long as 1 (the same tokens). Held-out success after training is within noise
(95% intervals overlap) in all arms, and the reward of the last ten steps within 0.03.

(Written for 30 steps; a first run showed that these take too long. ``two`` and ``ahead`` at 4 updates are not run.)

Wall and CPU seconds are medians over all but the first three steps, of this process (verifiers are others).

Left out: GPUs, and servers.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from heliostat.config import load_recipe
from heliostat.train import run_recipe
from heliostat.train.console.progress import Display
from heliostat.train.run import run_sft

RESULTS = Path(__file__).resolve().parent / "results" / "two_cores.jsonl"
NUM_STEPS, NUM_FIRST = 12, 3
ARMS: dict[str, dict[str, object]] = {
    "one": {"run.num_threads": 1, "rollout.num_workers": 1},
    "two": {"run.num_threads": 2, "rollout.num_workers": 2},
    "ahead": {"run.num_threads": 1, "rollout.num_workers": 1, "rollout.max_staleness": 1},
}


class Clock(Display):
    """Reads both clocks behind every step."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[tuple[float, float]] = []

    def step(self, step: int, values: dict[str, float]) -> None:  # type: ignore[override]
        self.readings.append((time.monotonic(), time.process_time()))

    def seconds(self, clock: int) -> float:
        times = [reading[clock] for reading in self.readings[NUM_FIRST - 1 :]]
        return median(after - before for before, after in pairwise(times))


def measure(work: Path, model: Path, arm: str, num_updates: int) -> dict[str, object]:
    recipe = load_recipe(
        "demo",
        {
            "model.path": str(model),
            "model.dtype": "float32",
            "warm_start.num_steps": 0,
            "train.num_steps": NUM_STEPS,
            "train.updates_per_step": num_updates,
            "eval.every": 0,
            "guard.panel_every": 0,
            **ARMS[arm],
        },
    )
    clock = Clock()
    result = run_recipe(recipe, work / f"{arm}-{num_updates}", display=clock)
    assert result.after is not None, result.reason
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["step"] > NUM_FIRST]
    return {
        "arm": arm,
        "updates": num_updates,
        "wall_s": clock.seconds(0),
        "cpu_s": clock.seconds(1),
        "rollout_s": median(row["time/rollout"] for row in steps),
        "update_s": median(row["time/update"] for row in steps),
        "ahead_s": median(row.get("time/ahead", 0.0) for row in steps),
        "reward": mean(row["reward/mean"] for row in steps[-10:]),
        "pass@1": result.after.pass_at_1,
        "ci95": list(result.after.ci95),
    }


def main() -> None:
    """Measure what has no line yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    warm = args.work / "warm"
    if not (warm / "model").exists():
        run_sft(load_recipe("demo", {"run.num_threads": 2}), run_dir=warm)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    known = {(row["arm"], row["updates"]) for row in rows}
    for num_updates in (1, 4):
        for arm in ARMS:
            if (arm, num_updates) not in known:
                rows.append(measure(args.work, warm / "model", arm, num_updates))
                with RESULTS.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))


if __name__ == "__main__":
    main()

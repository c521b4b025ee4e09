"""Do both sides of the race learn the same? Reward step by step, several seeds each, and what was agreed to call equal.

    python benchmarks/race_trl/learning.py --trl-python PYTHON --minutes 30       # the same command goes on
    python benchmarks/race_trl/learning.py --sides "heliostat float32" heliostat --store results/precision.jsonl
    python benchmarks/race_trl/learning.py --table

The 5M model on short prompts, the same number of steps on both sides. A seed's result is its mean reward over all
steps; seeds are independent on each side. **Equal within noise**: the 95% interval of the difference of the sides'
means (Welch) contains 0 and ends within ``MARGIN`` of it. One that contains 0 and is wider decides nothing.

Left out: other models and workloads, and time (``race``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from entries import Entry
from race import RESULTS, Lap, arguments, fresh, keep, read, run_side

CURVES = RESULTS / "learning.jsonl"
ENTRY = Entry("5M", "short")
SIDES = ("heliostat float32", "trl float32")
MARGIN = 0.05
"""Of reward, which is between 0 and 1."""
NUM_SHOWN = 6
"""Rows of the table: so many stretches of steps."""


def curve(laps: Sequence[Lap], side: str) -> np.ndarray:
    """Rewards, ``[seed, step]``."""
    seeds = sorted({lap["seed"] for lap in laps if lap["contender"] == side})
    mine = {(lap["seed"], lap["step"]): lap["reward"] for lap in laps if lap["contender"] == side}
    num_steps = max((step for _, step in mine), default=0)
    return np.array([[mine[seed, step] for step in range(1, num_steps + 1)] for seed in seeds])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95% interval (Student)."""
    from scipy import stats

    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def difference(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """95% interval of the difference of the means of two independent samples (Welch)."""
    from scipy import stats

    found = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def verdict(low: float, high: float) -> str:
    """What the interval of the difference says.

    **Limits** An interval without 0 is a difference, however small.
    """
    if low > 0 or high < 0:
        return "they learn differently, and the race is void"
    return "equal within noise" if max(-low, high) <= MARGIN else "not decided: more seeds are needed"


def table(laps: Sequence[Lap], sides: Sequence[str]) -> str:
    """Mean reward of both sides in stretches of steps, then the difference and the verdict."""
    curves = [curve(laps, side) for side in sides]
    if min(map(len, curves)) < 2:
        return "fewer than two seeds of a side are stored"
    lines = [f"| steps | {' | '.join(sides)} |", "|---|--:|--:|"]
    for steps in np.array_split(np.arange(curves[0].shape[1]), NUM_SHOWN):
        cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in (interval(c[:, steps].mean(1)) for c in curves)]
        lines.append(f"| {steps[0] + 1} to {steps[-1] + 1} | {' | '.join(cells)} |")
    totals = [c.mean(1) for c in curves]
    lines.append("| all | " + " | ".join(f"{mean:.3f} ± {half:.3f}" for mean, half in map(interval, totals)) + " |")
    low, high = difference(*totals)
    seeds = " and ".join(str(len(c)) for c in curves)
    lines += ["", f"Difference of the means, 95%: [{low:+.3f}, {high:+.3f}], {seeds} seeds: {verdict(low, high)}."]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0, help="make only the runs of this seed and later ones")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sides", nargs=2, default=SIDES, help="contenders of the race to compare")
    parser.add_argument("--store", type=Path, default=CURVES, help="where curves are kept")
    args = parser.parse_args()
    done = set() if args.table else {(lap["contender"], lap["seed"]) for lap in fresh(args.store)}
    runs = [
        (seed, side) for seed in range(args.first_seed, args.seeds) for side in args.sides if (side, seed) not in done
    ]
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for seed, side in [] if args.table else runs:
            if time.monotonic() > deadline:
                print("time is up; the same command goes on")
                break
            laps = run_side(side, ENTRY, Path(folder), args.steps, seed, args)
            keep(
                args.store, ({"contender": side, "seed": seed, "step": x["step"], "reward": x["reward"]} for x in laps)
            )
            print(f"{side}, seed {seed}: mean reward {np.mean([lap['reward'] for lap in laps]):.3f}", flush=True)
    print(table(read(args.store), args.sides))


if __name__ == "__main__":
    main()

"""The races of the study: a sweep on one seed, then the best value on others; resumable, one line per run.

python studies/rank1/run.py                 the runs that are in results.jsonl (MuJoCo: extra mujoco)
python studies/rank1/run.py --full          the whole grid: all arms, ten seeds, 100k steps; MuJoCo five, 300k
python studies/rank1/run.py --minutes 4     stop before a run that would begin later; the same line goes on
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from arms import ARMS, FULL, SHORT, Race

from heliostat.control import PolicyDiverged
from heliostat.control.training_run import TrainingRun, run_training

HERE = Path(__file__).parent
SWEEP_SEED = 100


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def score(run: dict[str, Any]) -> float:
    """Mean return over the last quarter of the evaluations; of a run that diverged, the lowest return it had."""
    returns = [row["return"] for row in run["rows"]]
    if run.get("diverged"):
        return min(returns)
    return statistics.fmean(returns[-max(1, len(returns) // 4) :])


def best_value(runs: list[dict[str, Any]], env: str, name: str) -> float | None:
    """The swept value with the highest score; ``None`` while the sweep is not complete."""
    swept = {r["value"]: score(r) for r in runs if r["env"] == env and r["arm"] == name and r["seed"] == SWEEP_SEED}
    if set(swept) < set(ARMS[name].swept(env)):
        return None
    return max(swept, key=lambda value: swept[value])


def next_run(
    runs: list[dict[str, Any]], races: dict[str, Race], num_seeds: int | None
) -> tuple[str, str, float, int] | None:
    """The first run that is missing: every arm's sweep, then a seed of every arm at a time."""
    done = {(r["env"], r["arm"], r["value"], r["seed"]) for r in runs}
    for env, race in races.items():
        for name in race.arms:
            for value in ARMS[name].swept(env):
                if (env, name, value, SWEEP_SEED) not in done:
                    return env, name, value, SWEEP_SEED
        for seed in range(num_seeds or race.num_seeds):
            for name in race.arms:
                best = best_value(runs, env, name)
                if best is not None and (env, name, best, seed) not in done:
                    return env, name, best, seed
    return None


def keep_rounded(rows: list[dict[str, float]], row: Mapping[str, float]) -> None:
    rows.append({key: round(number, 3) for key, number in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seeds", type=int, help="of every arm; default: as planned in arms.py")
    parser.add_argument("--envs", nargs="+")
    arguments = parser.parse_args()
    races = FULL if arguments.full else SHORT
    races = {env: races[env] for env in arguments.envs or races}
    path = HERE / ("results_full.jsonl" if arguments.full else "results.jsonl")
    warnings.simplefilter("ignore")
    began = time.monotonic()
    while time.monotonic() - began < 60 * arguments.minutes:
        job = next_run(read(path), races, arguments.seeds)
        if job is None:
            break
        env, name, value, seed = job
        arm, num_steps = ARMS[name], races[env].num_steps
        run = TrainingRun(
            env, arm.algo, seed, num_steps, {**arm.settings, arm.key: value}, num_evals=10, num_episodes=5
        )
        rows: list[dict[str, float]] = []
        diverged = False
        try:
            run_training(run, partial(keep_rounded, rows))
        except PolicyDiverged:
            diverged = True
        result = {"env": env, "arm": name, "key": arm.key, "value": value, "seed": seed, "steps": num_steps}
        result |= {"rows": rows} | ({"diverged": True} if diverged else {})
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(env, name, value, seed, round(score(result), 1), f"{rows[-1]['cpu_s']:.1f} s", flush=True)


if __name__ == "__main__":
    main()

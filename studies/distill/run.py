"""A teacher against a reward at equal operations: the recipe ``distill`` from two students, by the library's update.

    OMP_NUM_THREADS=1 python studies/distill/run.py --work /tmp/distill --minutes 60    # goes on where it was
    python studies/distill/page.py

Every arm tries three learning rates on one seed from each start, and beyond the best while that is at an edge, up to
five. Five further seeds then run all arms, with the same problems and sampling streams by seed. A run ends when it has
spent ``BUDGET`` FLOPs on sampling, updates and the teacher. Runs are appended to ``results.jsonl``.

Success is the exact probability of the right answer over held-out problems, without sampling and without charge.
Left out: the teacher's own training, which no arm is charged for, and the tables (``page``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat import load_recipe, sft
from heliostat.research import Experiment, TrainingDiverged, open_experiment
from heliostat.rollout import completion_seed

RESULTS = Path(__file__).with_name("results.jsonl")
STARTS = {"rewarded": 60, "hardly rewarded": 50}
"""Supervised steps of each student."""
ARMS: dict[str, dict[str, Any]] = {
    "reward": {"teacher.path": "", "teacher.kind": "sampled"},
    "sampled": {"teacher.kind": "sampled"},
    "reverse-kl": {"teacher.kind": "reverse-kl"},
    "reward + reverse-kl": {"teacher.kind": "reverse-kl", "teacher.alone": False, "teacher.weight": 0.1},
}
RATES = (1e-4, 3e-4, 1e-3)
LADDER = (1e-5, 3e-5, *RATES, 3e-3, 1e-2)
MAX_RATES, TUNING_SEED, SEEDS = 5, 0, (1, 2, 3, 4, 5)
BUDGET = 400e9
CHECKS = 8
"""Measurements of success in a run, evenly in operations."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm."""

    start: str
    arm: str
    lr: float
    seed: int

    @property
    def key(self) -> Row:
        return {field: getattr(self, field) for field in self.__slots__}


def stored() -> list[Row]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(rows: list[Row], row: Row) -> None:
    """Append a row to the list and to the file."""
    rows.append(row)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def final(row: Row) -> float:
    """Return success at the end; 0 for a run that diverged."""
    return float(row["curve"][-1][2]) if row["status"] == "finished" else 0.0


def tuning(rows: list[Row], start: str, arm: str) -> dict[float, float]:
    """Return final success by learning rate on the tuning seed."""
    of_arm = [row for row in rows if (row["start"], row["arm"], row["seed"]) == (start, arm, TUNING_SEED)]
    return {row["lr"]: final(row) for row in of_arm}


def best_rate(rows: list[Row], start: str, arm: str) -> float:
    tried = tuning(rows, start, arm)
    return max(tried, key=lambda lr: tried[lr])


def next_rate(rows: list[Row], start: str, arm: str) -> float | None:
    """Return the rate that the rule tries next, ``None`` when it has tried all."""
    tried = tuning(rows, start, arm)
    if missing := [lr for lr in RATES if lr not in tried]:
        return missing[0]
    best = best_rate(rows, start, arm)
    place = LADDER.index(best) + {min(tried): -1, max(tried): 1}.get(best, 0)
    inside = 0 <= place < len(LADDER) and len(tried) < MAX_RATES
    return LADDER[place] if inside and LADDER[place] not in tried else None


def plan(rows: list[Row]) -> Iterator[Run]:
    """Start by start: the rates of every arm, then seed by seed every arm at its best."""
    for start in STARTS:
        for arm in ARMS:
            while (lr := next_rate(rows, start, arm)) is not None:
                yield Run(start, arm, lr, TUNING_SEED)
        for seed in SEEDS:
            for arm in ARMS:
                yield Run(start, arm, best_rate(rows, start, arm), seed)


def teacher(work: Path) -> str:
    """Train the teacher unless its folder is there, and return its model's folder."""
    return str(sft(load_recipe("distill-teacher"), run_dir=work / "teacher").folder / "model")


def student(work: Path, start: str) -> str:
    """Train a student unless its folder is there, and return its model's folder."""
    recipe = load_recipe("distill", {"warm_start.num_steps": STARTS[start]})
    return str(sft(recipe, run_dir=work / start.replace(" ", "-")).folder / "model")


def opened(work: Path, start: str) -> dict[str, Any]:
    """Return the settings that all runs from a start have in common."""
    return {
        "run.num_threads": 1,
        "model.path": student(work, start),
        "teacher.path": teacher(work),
        "warm_start.num_steps": 0,
        "optimizer.schedule": "constant",
    }


def success(experiment: Experiment) -> float:
    scores = experiment.score_solutions(experiment.heldout)
    return round(sum(float(logp.double().sum().exp()) for logp in scores) / len(scores), 5)


def carry_out(experiment: Experiment, weights: dict[str, torch.Tensor], run: Run) -> Row:
    """Train one arm until its operations are spent, and return its curve of steps, operations and success."""
    experiment.restart(weights, {"optimizer.lr": run.lr, "run.seed": run.seed, **ARMS[run.arm]})
    began, spent, index = time.process_time(), 0.0, 0
    row: Row = {**run.key, "status": "finished", "curve": [[0, 0.0, success(experiment)]]}
    while spent < BUDGET:
        seed = completion_seed(run.seed, "step", index)
        problems = experiment.problems(index, experiment.recipe.rollout.prompts_per_step)
        try:
            experiment.step(experiment.sample(problems, seed=seed), seed=seed)
        except TrainingDiverged:
            return row | {"status": "diverged"}
        before, spent, index = spent, experiment.ledger.spent, index + 1
        if spent * CHECKS // BUDGET > before * CHECKS // BUDGET:
            row["curve"].append([index, round(spent / 1e9, 2), success(experiment)])
    shares = {phase: round(flops / spent, 3) for phase, flops in experiment.ledger.flops.items() if flops}
    return row | {"shares": shares, "cpu_s": round(time.process_time() - began, 1)}


def check_start(rows: list[Row], row: Row) -> None:
    """Refuse a run from another start than that of the stored runs.

    Raises:
        SystemExit: it begins with another success.
    """
    known = [each["curve"][0][2] for each in rows if each["start"] == row["start"]]
    if known and abs(known[0] - row["curve"][0][2]) > 1e-4:
        raise SystemExit(
            f"the start '{row['start']}' solves {row['curve'][0][2]}, that of the stored runs {known[0]}; go on with "
            "the same --work, or move results.jsonl away"
        )


def carry_on(work: Path, until_s: float) -> None:
    """Make the runs that are not stored, until so much CPU time is spent."""
    rows = stored()
    with ExitStack() as stack:
        experiments: dict[str, tuple[Experiment, dict[str, torch.Tensor]]] = {}
        for run in plan(rows):
            if any(run.key.items() <= row.items() for row in rows):
                continue
            if time.process_time() > until_s:
                print("to be continued")
                return
            if run.start not in experiments:
                experiment = stack.enter_context(open_experiment("distill", opened(work, run.start)))
                experiments[run.start] = experiment, experiment.weights()
            row = carry_out(*experiments[run.start], run)
            check_start(rows, row)
            keep(rows, row)
            print(run, row["status"], f"{final(row):.3f}", f"{row.get('cpu_s', 0):.0f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the teacher and the students")
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU minutes of this call")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    carry_on(arguments.work, 60 * arguments.minutes)


if __name__ == "__main__":
    main()

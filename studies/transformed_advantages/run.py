"""Do transformed advantages train a language model better than plain ones?

    OMP_NUM_THREADS=1 python studies/transformed_advantages/run.py --work /tmp/transformed     # goes on; --table

On the arena of ``studies/pmd``: sums of two numbers below 30, 128 updates on 64 completions, always on policy, success
computed exactly. Every arm tries the same number of learning rates on two seeds and runs the best on five others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "pmd"))

from arena import Arena, settings_of  # noqa: E402
from arms import NUM_UPDATES, Run  # noqa: E402
from arms import Arm as PmdArm  # noqa: E402
from transform import transformed  # noqa: E402

from heliostat.research import TrainingDiverged  # noqa: E402
from heliostat.rollout import completion_seed  # noqa: E402
from heliostat.statistics import bootstrap  # noqa: E402

RESULTS = HERE / "results.jsonl"
RATES = {"SGD": (0.001, 0.003, 0.01, 0.03, 0.1), "AdamW": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
SCREEN, FRESH = (0, 1), (10, 11, 12, 13, 14)
UNCLIPPED = 1e9
"""Clipping the gradient's norm would hide what the transformation does to it."""


@dataclass(frozen=True)
class Arm:
    """An optimizer, and whose scores transform the advantages; none: as they are."""

    optimizer: str
    gram: str = "none"
    relative_damping: float = 0.0


SCORES = (("none", 0.0), ("last layer", 1.0), ("last layer", 0.1), ("last layer", 0.01), ("whole", 0.1))
ARMS = [Arm(optimizer, *scores) for scores in SCORES for optimizer in RATES]


def carry_out(arena: Arena, arm: Arm, lr: float, seed: int) -> dict[str, Any]:
    """Make one run; one that diverges keeps what it reached."""
    experiment, run = arena.experiment, Run(PmdArm("reinforce"), lr, seed)
    optimizer = {"optimizer.name": arm.optimizer.lower(), "optimizer.max_grad_norm": UNCLIPPED}
    experiment.restart(arena.weights, settings_of(run) | optimizer)
    status, transform_s = "finished", 0.0
    began = time.process_time()
    try:
        for done, groups in enumerate(arena.rollouts(run)):
            batch, advantages = experiment.updater.make_batch(groups), None
            if arm.gram != "none" and any(group.has_signal for group in batch.groups):
                started = time.process_time()
                advantages = transformed(experiment.policy, batch, arm.gram, arm.relative_damping)
                transform_s += time.process_time() - started
            experiment.step(groups, seed=completion_seed(seed, "order", done), advantages=advantages)
    except TrainingDiverged:
        status = "diverged"
    success = arena.success(experiment.heldout)
    spent = {"cpu_s": time.process_time() - began, "transform_s": transform_s}
    return {**asdict(arm), "lr": lr, "seed": seed, "status": status, "heldout": success, **spent}


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def of(rows: list[dict[str, Any]], arm: Arm, lr: float, seeds: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    same = [row for row in rows if {**asdict(arm), "lr": lr}.items() <= row.items() and row["seed"] in seeds]
    return {row["seed"]: row for row in same}


def best_rate(rows: list[dict[str, Any]], arm: Arm) -> float | None:
    """The learning rate with the highest mean over the screen's seeds; ``None`` while it is not complete."""
    means = {}
    for lr in RATES[arm.optimizer]:
        found = of(rows, arm, lr, SCREEN)
        if len(found) < len(SCREEN):
            return None
        means[lr] = statistics.fmean(row["heldout"] for row in found.values())
    return max(means, key=lambda lr: means[lr])


def missing(rows: list[dict[str, Any]]) -> Iterator[tuple[Arm, float, int]]:
    """What is to be run, the most wanted first."""
    for arm in ARMS:
        for lr in RATES[arm.optimizer]:
            for seed in SCREEN:
                if seed not in of(rows, arm, lr, SCREEN):
                    yield arm, lr, seed
        best = best_rate(rows, arm)
        for seed in FRESH:
            if best is not None and seed not in of(rows, arm, best, FRESH):
                yield arm, best, seed


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| optimizer | scores | damping | rate (of 5) | held-out success [95 %] | seeds | CPU s | transforming |",
        "|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for arm in ARMS:
        best = best_rate(rows, arm)
        found = list(of(rows, arm, best, FRESH).values()) if best is not None else []
        if len(found) < 2:
            continue
        estimate = bootstrap([row["heldout"] for row in found])
        cpu_s, transform_s = (statistics.fmean(row[key] for row in found) for key in ("cpu_s", "transform_s"))
        damping = f"{arm.relative_damping:g}" if arm.gram != "none" else "–"
        lines.append(
            f"| {arm.optimizer} | {arm.gram} | {damping} | {best:g} | {estimate.value:.3f} [{estimate.low:.3f}, "
            f"{estimate.high:.3f}] | {len(found)} | {cpu_s:.1f} | {transform_s / cpu_s:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the problems and the warm start")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    if not args.table:
        deadline = time.monotonic() + 60 * args.minutes
        with Arena(args.work, "low", {"model.dtype": "float32"}) as arena:
            while (job := next(missing(read()), None)) and time.monotonic() < deadline:
                row = carry_out(arena, *job)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(*job, round(row["heldout"], 3), f"{row['cpu_s']:.1f} s", flush=True)
        print(NUM_UPDATES, "updates a run;", "complete" if job is None else "the same command goes on")
    print(table(read()))


if __name__ == "__main__":
    main()

"""Question 4: tool use that is learnt and then lost (the pattern of 2605.26037), under the guard.

GRPO with a learning rate that rises linearly to the end, whole runs of the trainer. It rises to ten times too much,
watched (``shadow``) and with the guard acting (``act``), or to a rate that lasts (``healthy``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import SEEDS
from worlds import recipe_of, start_of

from heliostat import post_train
from heliostat.train import RunFailed

WORLD = "lookup-2"
NUM_STEPS, UPDATES = 45, 4
RATES = {"shadow": 1e-2, "act": 1e-2, "healthy": 1e-3}
KEPT = (
    *("reward/success", "policy/entropy", "policy/lambda_hat", "optim/lr", "optim/grad_norm", "agent/turns"),
    *("agent/valid_calls", "agent/empty_actions", "agent/turn_truncated", "agent/repeated_actions"),
)
Key = tuple[str, int]


def plan() -> Iterator[Key]:
    """The arms, seed by seed."""
    yield from ((arm, seed) for seed in SEEDS for arm in RATES)


def carry_out(key: Key, work: Path) -> dict[str, Any]:
    """Make one run in a folder of its own, and keep its findings and the metrics that show the loss."""
    arm, seed = key
    started = time.process_time()
    folder = work / f"collapse-{arm}-{seed}"
    after: float | None = None
    try:
        result = post_train(recipe_of(WORLD), settings_of(arm, seed, start_of(WORLD, work)), folder)
        status = result.status
        after = None if result.after is None else float(result.after.pass_at_1)
    except RunFailed as failed:
        status = f"failed: {failed.reason.partition(':')[0]}"
    steps = [row for row in read(folder / "metrics.jsonl") if row["step"] > 0 and "reward/success" in row]
    abandoned = [row for row in read(folder / "abandoned.jsonl") if "reward/success" in row]
    return {
        **{"arm": arm, "lr": RATES[arm], "seed": seed, "status": status, "after": after},
        "curve": [curve_row(row) for row in steps],
        "abandoned": [curve_row(row) for row in abandoned],
        "events": [short(event) for event in read(folder / "events.jsonl")],
        "cpu_s": round(time.process_time() - started, 2),
    }


def settings_of(arm: str, seed: int, start: Path) -> dict[str, Any]:
    """Return the overrides of a run."""
    return {
        "run.seed": seed,
        "model.path": str(start),
        "model.settings": {},
        "warm_start.num_steps": 0,
        "objective.name": "grpo",
        "optimizer.lr": RATES[arm],
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": NUM_STEPS * UPDATES,
        "train.num_steps": NUM_STEPS,
        "train.updates_per_step": UPDATES,
        "train.checkpoint_every": 5,
        "train.keep_checkpoints": 4,
        "rollout.prompts_per_step": 4,
        "eval.every": 0,
        "guard.mode": "act" if arm == "act" else "shadow",
        "guard.baseline_start": 3,
        "guard.baseline_steps": 10,
        "guard.panel_every": 0,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step of a row of metrics and the numbers that are kept."""
    return {"step": row["step"]} | {key: float(f"{row[key]:.5g}") for key in KEPT if key in row}


def short(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event without its longer texts."""
    return {key: value for key, value in event.items() if isinstance(value, int | float) or len(str(value)) < 60}


def missing(rows: Sequence[Mapping[str, Any]]) -> Key | None:
    """Return the first run of the plan that is not among the rows."""
    done = {(row["arm"], row["seed"]) for row in rows}
    return next((key for key in plan() if key not in done), None)

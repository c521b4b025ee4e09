"""Time to a stated held-out success on the demo's task: Heliostat against TRL's GRPOTrainer, from one model.

    python benchmarks/race_trl/success.py --trl-python PYTHON --work FOLDER --tune     # rates of all sides
    python benchmarks/race_trl/success.py --trl-python PYTHON --work FOLDER            # three seeds; again goes on
    python benchmarks/race_trl/success.py --table

The warm-started model of the demo is made once in ``FOLDER``. All sides load it, the same 3,000 problems, the demo's
batch (128 prompts x 8 completions, two updates on each) and AdamW at a constant rate after four updates of warm-up. Of
every second step the weights are kept. When the run is over, they answer the 200 held-out problems four times each, and
the time of a run is where the line between two of these results crosses ``TARGET``. Its clock leaves out the imports,
the loading, and on TRL's side the saving; Heliostat's checkpoints are in its time.

TRL's reward is a comparison of texts here. It is held against the verifier's verdicts before anything is timed.

Left out: the warm start, and models of other sizes (``race``).
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from race import RESULTS, Lap, arguments, keep, read, run_python
from success_sides import KEEP_EVERY, says_answer

HERE = Path(__file__).resolve().parent
STORE, TUNING = RESULTS / "success.jsonl", RESULTS / "success-tuning.jsonl"
TARGET = 0.80
"""Of pass@1 on held-out problems; the warm-started model has about 0.38."""
NUM_SAMPLES = 4
NUM_STEPS = 40
TUNING_SEED = 100

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "heliostat": ("heliostat", {"own": {"objective.name": "pmd-mean", "objective.tau": 0.5}}),
    "heliostat, grpo": ("heliostat", {"own": {"objective.name": "grpo"}}),
    "trl, grpo": ("trl", {}),
}
RATES = (1e-4, 3e-4, 1e-3)
PRECISIONS: dict[str, Sequence[dict[str, Any]]] = {
    "heliostat": [{"dtype": "bfloat16"}],
    "heliostat, grpo": [],
    "trl, grpo": [{"bf16": False}, {"micro_batch": 128}, {"micro_batch": 1024}],
}
"""Tried at the best rate."""
BEST: dict[str, dict[str, Any]] = {
    "heliostat": {"lr": 3e-4, "dtype": "float32"},
    "heliostat, grpo": {"lr": 3e-4, "dtype": "float32"},
    "trl, grpo": {"lr": 3e-4, "bf16": True, "micro_batch": 256},
}
"""Settings with the least time to the target, as ``--tune`` found: rates, precisions, TRL's micro-batches."""


def prepare(work: Path) -> tuple[Path, Path]:
    """The warm-started model and the problems, made if they are not there; checks TRL's reward against the verifier."""
    from heliostat import load_recipe, sft
    from heliostat.train.checks.recipe import load_tasks

    model, problems = work / "warm" / "model", work / "problems.jsonl"
    recipe = load_recipe("demo")
    if not model.exists():
        sft(recipe, run_dir=work / "warm")
    if not problems.exists():
        (task,) = load_tasks(recipe)
        rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in task.train]
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, problems


def run_side(side: str, settings: Mapping[str, Any], seed: int, num_steps: int, args: Any) -> tuple[list[Lap], Path]:
    """One run in a process of its own; returns its laps and the folder of the weights it kept."""
    model, problems = prepare(args.work)
    name, more = SIDES[side]
    folder = args.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {
        "model": str(model),
        "problems": str(problems),
        "folder": str(folder),
        "num_steps": num_steps,
        "num_threads": args.threads,
        "seed": seed,
        **more,
        **settings,
    }
    path = args.work / "job.json"
    path.write_text(json.dumps(job))
    python = args.trl_python if name == "trl" else sys.executable
    done = run_python(python, HERE / "success_sides.py", name, str(path), job=job)
    laps = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("LAP ")]
    if done.returncode or not laps:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return laps, folder


def held_out(weights: Path, model: Path, work: Path) -> float:
    """pass@1 of kept weights: those of a checkpoint, in a copy of the model's folder."""
    from heliostat import evaluate

    folder = work / "evaluated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    shutil.copy(weights, folder / "model.safetensors")
    report = evaluate(folder, "demo", {"run.num_threads": 1}, num_samples=NUM_SAMPLES, greedy=False)
    return float(report.evaluations[0].pass_at_1)


def curve(laps: Sequence[Lap], folder: Path, args: Any) -> list[Lap]:
    """Time and held-out success after every kept step, from the start."""
    model, _ = prepare(args.work)
    points = [
        {"step": 0, "cpu_s": 0.0, "wall_s": 0.0, "success": held_out(model / "model.safetensors", model, args.work)}
    ]
    cpu = wall = 0.0
    for lap in laps:
        cpu, wall = cpu + lap["cpu_s"], wall + lap["wall_s"]
        kept = folder / f"step_{lap['step']:06d}" / "model.safetensors"
        if lap["step"] % KEEP_EVERY == 0:
            success = held_out(kept, model, args.work)
            points.append({"step": lap["step"], "cpu_s": cpu, "wall_s": wall, "success": success})
            if success >= TARGET and points[-2]["success"] >= TARGET:
                break  # the crossing is known
    return points


def crossing(points: Sequence[Lap], key: str) -> float | None:
    """Find where the line through the results first reaches the target; ``None`` if it never does.

    **Limits** A first result at the target or above gives its own time.
    """
    if points[0]["success"] >= TARGET:
        return float(points[0][key])
    for before, after in itertools.pairwise(points):
        if after["success"] >= TARGET:
            share = (TARGET - before["success"]) / (after["success"] - before["success"])
            return float(before[key] + share * (after[key] - before[key]))
    return None


def check_reward(folder: Path) -> int:
    """Hold TRL's reward against the verdicts in a run's transcripts; returns the number of completions compared."""
    rows = [row for row in read(folder / "transcripts.jsonl") if "success" in row]
    for row in rows:
        if says_answer(row["completion"], row["answer"]) != row["success"]:
            raise SystemExit(f"TRL's reward differs from the verifier's on {row['completion']!r}")
    if not rows:
        raise SystemExit(f"no verified completion stands in {folder}")
    return len(rows)


def run_all(runs: Sequence[tuple[str, dict[str, Any], int]], store: Path, args: Any) -> None:
    """All runs that are missing, each kept when it ends."""
    deadline = time.monotonic() + 60 * args.minutes
    done = {(row["side"], json.dumps(row["settings"]), row["seed"], row["threads"]) for row in read(store)}
    for side, settings, seed in runs:
        if (side, json.dumps(settings), seed, args.threads) in done:
            continue
        if time.monotonic() > deadline:
            print("time is up; the same command goes on")
            return
        laps, folder = run_side(side, settings, seed, args.steps, args)
        if side.startswith("heliostat"):
            check_reward(folder)
        points = curve(laps, folder, args)
        row = {
            "side": side,
            "settings": settings,
            "seed": seed,
            "threads": args.threads,
            "cpu_s_a_step": statistics.median(lap["cpu_s"] for lap in laps[1:]),
            "peak_mib": max(lap["peak_mib"] for lap in laps),
            "points": points,
        }
        keep(store, [row])
        print(f"{side}, {settings}, seed {seed}: {crossing(points, 'cpu_s')} CPU s to {TARGET}", flush=True)


def table(rows: Sequence[Lap]) -> str:
    """A line for every side with every setting: medians over seeds of the times, and their ratios to Heliostat's."""
    lines = [
        "| side | settings | threads | seeds | steps | CPU s | x [seeds] | wall s | x | CPU s/step | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    sides: dict[tuple[int, str, str], dict[int, Lap]] = {}
    for row in rows:
        sides.setdefault((row["threads"], row["side"], json.dumps(row["settings"])), {})[row["seed"]] = row
    for (threads, side, settings), mine in sorted(sides.items()):
        about = f"| {side} | {settings} | {threads} | {len(mine)} "
        if any(crossing(row["points"], "step") is None for row in mine.values()):
            best = [max(point["success"] for point in row["points"]) for row in mine.values()]
            lines.append(f"{about}| not reached: {min(best):.3f} to {max(best):.3f} |" + " |" * 6)
            continue
        first = sides.get((threads, "heliostat", json.dumps(BEST["heliostat"])), {})
        cells = [f"{statistics.median(times(mine, 'step').values()):.1f}"]
        for key in ("cpu_s", "wall_s"):
            own, theirs = times(mine, key), times(first, key)
            ratios = [own[seed] / theirs[seed] for seed in own.keys() & theirs.keys()]
            cells.append(f"{statistics.median(own.values()):.1f}")
            cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if ratios else "–")
        cells.append(f"{statistics.median(row['cpu_s_a_step'] for row in mine.values()):.2f}")
        cells.append(f"{max(row['peak_mib'] for row in mine.values()):.0f}")
        lines.append(f"{about}| {' | '.join(cells)} |")
    return "\n".join(lines)


def times(rows: Mapping[int, Lap], key: str) -> dict[int, float]:
    """Seed -> where a run reached the target, of those that did."""
    found = {seed: crossing(row["points"], key) for seed, row in rows.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("success"), help="folder of the model, the problems and a run"
    )
    parser.add_argument("--tune", action="store_true", help="try every side's settings on a seed of its own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), help="only these")
    args = parser.parse_args()
    args.work = args.work.resolve()
    store = TUNING if args.tune else STORE
    if args.tune:
        changes = {side: [*({"lr": lr} for lr in RATES), *PRECISIONS[side]] for side in args.sides}
        runs = [(side, {**BEST[side], **change}, TUNING_SEED) for side in args.sides for change in changes[side]]
    else:
        runs = [(side, BEST[side], seed) for seed in range(args.seeds) for side in args.sides]
    if not args.table:
        run_all(runs, store, args)
    print(table(read(store)))


if __name__ == "__main__":
    main()

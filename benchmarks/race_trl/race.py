"""The race against TRL's GRPOTrainer: same model files, prompts, group size, token budget, objective and precision.

    python benchmarks/race_trl/race.py --trl-python PYTHON        # an interpreter that has TRL; default: this one
    python benchmarks/race_trl/race.py --models 5M --workloads short --rounds 1

Runs alternate between the sides in one process tree. A round of an entry is one run of each contender; of every run the
first step warms up, and the others' medians are compared. Seconds of CPU are the measure where the machine is shared,
wall seconds where it is not: both are kept. The rewards of the first steps are kept too, since sides that do not learn
the same have not run the same race.

Left out: vLLM-backed TRL, and several devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entries import Entry, write_model, write_prompts
from sides import WARM_UP_STEPS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Lap = dict[str, Any]

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "heliostat": ("heliostat", {}),
    "trl tuned": ("trl", {"tuned": True, "micro_batch": 32}),
    "trl as it comes": ("trl", {"tuned": False, "micro_batch": 8}),
}
"""Name -> side and its settings; ``--try-micro-batches`` shows that 32 rows was TRL's best here of 8, 16, 32 and 64."""

ENTRIES = [
    Entry("5M", "short"),
    Entry("5M", "long"),
    Entry("5M", "prefix"),
    Entry("25M", "short"),
    Entry("25M", "long"),
    Entry("25M", "prefix"),
    Entry("smollm2-135m", "short", num_prompts=2),
]


def run_side(
    contender: str, entry: Entry, folder: Path, num_steps: int, args: argparse.Namespace, seed: int
) -> list[Lap]:
    """One run of one contender; returns its laps."""
    side, settings = CONTENDERS[contender]
    model = write_model(entry.model, folder)
    job = {
        **dataclasses.asdict(entry),
        **settings,
        "num_rows": entry.num_rows,
        "model": str(model),
        "prompts": str(write_prompts(entry, model, folder)),
        "num_steps": num_steps,
        "num_threads": args.threads,
        "seed": seed,
        "settings": {"run.seed": seed},
    }
    job["micro_batch"] = min(job.get("micro_batch", 8), entry.num_rows)
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    python = args.trl_python if side == "trl" else sys.executable
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "MKL_NUM_THREADS": str(args.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [python, str(HERE / "sides.py"), side, str(path)], env=environment, text=True, capture_output=True, check=False
    )
    laps = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("LAP ")]
    if done.returncode or not laps:
        raise SystemExit(f"{contender} on {entry.model}/{entry.workload} failed:\n{done.stderr[-3000:]}")
    return laps


def race(entry: Entry, contenders: Sequence[str], folder: Path, args: argparse.Namespace) -> list[Lap]:
    """All rounds of one entry, contenders taking turns."""
    laps = []
    for number in range(args.rounds):
        for contender in contenders:
            for lap in run_side(contender, entry, folder, args.steps + WARM_UP_STEPS, args, seed=number):
                laps.append({**dataclasses.asdict(entry), "contender": contender, "round": number, **lap})
            print(f"{entry.model} {entry.workload} round {number}: {contender} {_summary(laps, contender)}", flush=True)
    return laps


def _summary(laps: Iterable[Lap], contender: str) -> str:
    mine = [lap for lap in laps if lap["contender"] == contender and lap["step"] > WARM_UP_STEPS]
    return f"{statistics.median(lap['cpu_s'] for lap in mine):.2f} CPU s a step"


def table(laps: Sequence[Lap]) -> str:
    """Medians per step as Markdown, with CPU seconds per sampled token as a ratio to Heliostat's median."""
    lines = [
        "| model | prompts | contender | CPU s/step | x Heliostat [middle half] | wall s/step | tokens/CPU s "
        "| peak MiB | reward, first to last |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    entries = dict.fromkeys((lap["model"], lap["workload"]) for lap in laps)
    for model, workload in entries:
        here = [lap for lap in laps if (lap["model"], lap["workload"]) == (model, workload)]
        timed = [lap for lap in here if lap["step"] > WARM_UP_STEPS]
        ours = statistics.median(_per_token(lap) for lap in timed if lap["contender"] == "heliostat")
        for contender in dict.fromkeys(lap["contender"] for lap in here):
            mine = [lap for lap in timed if lap["contender"] == contender]
            lines.append(
                _line(model, workload, contender, mine, [x for x in here if x["contender"] == contender], ours)
            )
    return "\n".join(lines)


def _per_token(lap: Mapping[str, Any]) -> float:
    """CPU seconds per sampled token: sides draw different lengths, so steps are compared by what they produced."""
    return float(lap["cpu_s"]) / max(1.0, float(lap["tokens"]))


def _line(model: str, workload: str, contender: str, timed: list[Lap], laps: list[Lap], ours: float) -> str:
    ratios = sorted(_per_token(lap) / ours for lap in timed)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    median = {key: statistics.median(lap[key] for lap in timed) for key in ("cpu_s", "wall_s", "tokens")}
    rewards = [statistics.mean(lap["reward"] for lap in laps if lap["step"] == step) for step in (1, laps[-1]["step"])]
    return (
        f"| {model} | {workload} | {contender} | {median['cpu_s']:.2f} | {statistics.median(ratios):.2f} "
        f"[{low:.2f}, {high:.2f}] | {median['wall_s']:.2f} | {median['tokens'] / median['cpu_s']:.0f} "
        f"| {max(lap['peak_mib'] for lap in laps):.0f} | {rewards[0]:.2f} to {rewards[1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--models", nargs="*", default=[], help="only these")
    parser.add_argument("--workloads", nargs="*", default=[], help="only these")
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), help="only these")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed steps a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--try-micro-batches", action="store_true", help="time tuned TRL at 8, 16, 32 and 64 rows")
    args = parser.parse_args()
    if args.try_micro_batches:
        CONTENDERS.update(
            {f"trl tuned, {rows} rows": ("trl", {"tuned": True, "micro_batch": rows}) for rows in (8, 16, 64)}
        )
        args.contenders = ["heliostat", *(name for name in CONTENDERS if name.startswith("trl tuned"))]
    chosen = [
        entry
        for entry in ENTRIES
        if (not args.models or entry.model in args.models) and (not args.workloads or entry.workload in args.workloads)
    ]
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / "laps.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        for entry in chosen:
            laps = race(entry, args.contenders, Path(folder), args)
            kept = [x for x in _read(stored) if (x["model"], x["workload"]) != (entry.model, entry.workload)]
            stored.write_text("".join(json.dumps(lap) + "\n" for lap in [*kept, *laps]))
    print(table(_read(stored)))


def _read(path: Path) -> list[Lap]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()

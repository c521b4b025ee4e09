"""The race against TRL's GRPOTrainer: same model files, prompts, group size, token budget, objective and precision.

    python benchmarks/race_trl/race.py --trl-python PYTHON --minutes 60     # an interpreter that has TRL; again goes on
    python benchmarks/race_trl/race.py --models 5M --workloads short --rounds 1
    python benchmarks/race_trl/race.py --table

A round is one run of each contender on each entry, the sides taking turns in one process tree. Of every run the first
step warms up. What is compared is the median of CPU seconds per sampled token within a round; wall seconds are kept
beside it. Steps of ours in which more than a quarter of the groups had no signal are left out, since they cost less. A
run is stored when it ends, and not made again; runs of other code than today's are thrown away first, so the two never
mix.

Left out: whether both sides learn the same (``learning``), vLLM-backed TRL, and several devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entries import Entry, write_model, write_prompts
from sides import WARM_UP_STEPS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LAPS = RESULTS / "laps.jsonl"
Lap = dict[str, Any]

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "heliostat": ("heliostat", {"dtype": "auto"}),
    "heliostat float32": ("heliostat", {"dtype": "float32"}),
    "trl bfloat16": ("trl", {"tuned": {"bf16": True, "gradient_checkpointing": False}, "micro_batch": 32}),
    "trl float32": ("trl", {"tuned": {"bf16": False, "gradient_checkpointing": False}, "micro_batch": 32}),
    "trl as it comes": ("trl", {"tuned": {}, "micro_batch": 8}),
}
"""Name -> side and its settings; ``--try-micro-batches`` shows that 32 rows was TRL's best here of 8, 16, 32 and 64."""

ONCE = ("trl as it comes",)
"""Contenders of the first round alone."""

NUM_STEPS = {"5M": 6, "25M": 3, "smollm2-135m": 2}
"""Timed steps a run."""


def entry_of(model: str, workload: str) -> Entry:
    """Return a cell of the race."""
    if model == "smollm2-135m":
        return Entry(model, workload, num_prompts=2, reward="vowel_share")
    return Entry(model, workload)


ENTRIES = [entry_of(model, workload) for model in NUM_STEPS for workload in ("short", "long", "prefix")]

MAX_ZERO_SIGNAL = 0.25
"""Share of a step's groups without signal, above which the step is not compared."""


def code() -> str:
    """Return a fingerprint of all that a time depends on: the library's sources and both sides' set-up."""
    files = [HERE / "sides.py", HERE / "entries.py", *sorted((HERE.parents[1] / "src").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def job_of(
    contender: str, entry: Entry, folder: Path, num_steps: int, seed: int, num_threads: int
) -> tuple[str, dict[str, Any]]:
    """The side that runs a contender, and all that it is told; writes model and prompts into ``folder``."""
    side, settings = CONTENDERS[contender]
    model = write_model(entry.model, folder)
    job = {
        **dataclasses.asdict(entry),
        **settings,
        "num_rows": entry.num_rows,
        "model": str(model),
        "prompts": str(write_prompts(entry, model, folder)),
        "num_steps": num_steps,
        "num_threads": num_threads,
        "seed": seed,
        "settings": {"run.seed": seed},
    }
    return side, job | {"micro_batch": min(job.get("micro_batch", 8), entry.num_rows)}


def run_python(python: str, script: Path, *words: str, job: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """A script of this folder in a process of its own, with the job's threads."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job["num_threads"]),
        "MKL_NUM_THREADS": str(job["num_threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run([python, str(script), *words], env=environment, text=True, capture_output=True, check=False)


def run_side(
    contender: str, entry: Entry, folder: Path, num_steps: int, seed: int, args: argparse.Namespace
) -> list[Lap]:
    """One run of one contender; returns its laps."""
    side, job = job_of(contender, entry, folder, num_steps, seed, args.threads)
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = run_python(args.trl_python if side == "trl" else sys.executable, HERE / "sides.py", side, str(path), job=job)
    laps = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("LAP ")]
    if done.returncode or not laps:
        raise SystemExit(f"{contender} on {entry.model}/{entry.workload} failed:\n{done.stderr[-3000:]}")
    return laps


def fresh(path: Path) -> list[Lap]:
    """Return the stored laps of today's code; throw the others away."""
    stored = read(path)
    kept = [lap for lap in stored if lap.get("code") == code()]
    if len(kept) < len(stored):
        path.write_text("".join(json.dumps(lap) + "\n" for lap in kept))
    return kept


def read(path: Path) -> list[Lap]:
    """Everything stored."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, laps: Iterable[Lap]) -> None:
    """Store a finished run: at once, so that a killed race loses no other."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps({**lap, "code": code()}) + "\n" for lap in laps))


def race(chosen: Sequence[Entry], args: argparse.Namespace) -> None:
    """All runs that are missing, round by round, until the time is up."""
    done = {
        (lap["model"], lap["workload"], lap["contender"], lap["round"], lap["threads"]) for lap in fresh(args.store)
    }
    runs = [
        (number, entry, contender)
        for number in range(args.rounds)
        for entry in chosen
        for contender in (args.contenders if number % 2 == 0 else args.contenders[::-1])
        if number == 0 or contender not in ONCE
        if (entry.model, entry.workload, contender, number, args.threads) not in done
    ]
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for index, (number, entry, contender) in enumerate(runs):
            if time.monotonic() > deadline:
                print(f"time is up: {len(runs) - index} of {len(runs)} runs are left; the same command goes on")
                return
            num_steps = (args.steps or NUM_STEPS[entry.model]) + WARM_UP_STEPS
            about = {**dataclasses.asdict(entry), "contender": contender, "round": number, "threads": args.threads}
            laps = [{**about, **lap} for lap in run_side(contender, entry, Path(folder), num_steps, number, args)]
            keep(args.store, laps)
            median = statistics.median(lap["cpu_s"] for lap in laps if lap["step"] > WARM_UP_STEPS)
            print(f"round {number}: {entry.model} {entry.workload}, {contender}: {median:.2f} CPU s a step", flush=True)


def table(laps: Sequence[Lap]) -> str:
    """A line for every contender on every entry with every number of threads, as Markdown."""
    lines = [
        "| model | prompts | threads | contender | CPU s/step | x Heliostat [rounds] | wall s/step | x [rounds] "
        "| tokens/CPU s | peak MiB |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for entry, threads in itertools.product(ENTRIES, sorted({lap["threads"] for lap in laps})):
        all_here = [lap for lap in laps if _cell(lap) == (entry.model, entry.workload, threads)]
        here = [lap for lap in all_here if lap["step"] > WARM_UP_STEPS and _learns(lap)]
        ours = [lap for lap in here if lap["contender"] == "heliostat"]
        for contender in dict.fromkeys(lap["contender"] for lap in here):
            mine = [lap for lap in here if lap["contender"] == contender]
            peak = max(lap["peak_mib"] for lap in all_here if lap["contender"] == contender)
            times = [
                cell
                for key in ("cpu_s", "wall_s")
                for cell in (f"{statistics.median(lap[key] for lap in mine):.2f}", _ratio(mine, ours, key))
            ]
            cells = [entry.model, entry.workload, threads, contender, *times]
            lines.append(f"| {' | '.join(map(str, cells))} | {1 / _per_token(mine, 'cpu_s'):.0f} | {peak:.0f} |")
    return "\n".join(lines)


def _learns(lap: Mapping[str, Any]) -> bool:
    """Return whether nearly all groups of a step had a signal; ours leaves out the others, and TRL does not."""
    return float(lap.get("reward/zero_signal", 0.0)) <= MAX_ZERO_SIGNAL


def _cell(lap: Mapping[str, Any]) -> tuple[str, str, int]:
    return lap["model"], lap["workload"], lap["threads"]


def _ratio(mine: Sequence[Lap], ours: Sequence[Lap], key: str) -> str:
    """Median over rounds of the ratio within one, with the least and the greatest: the machine changes its speed."""
    if not ours:
        return "–"
    rounds = sorted({lap["round"] for lap in mine} & {lap["round"] for lap in ours})
    of_round = [
        _per_token([lap for lap in mine if lap["round"] == number], key)
        / _per_token([lap for lap in ours if lap["round"] == number], key)
        for number in rounds
    ]
    spread = f" [{min(of_round):.2f}, {max(of_round):.2f}]" if len(of_round) > 1 else ""
    return f"{statistics.median(of_round):.2f}{spread}" if of_round else "–"


def _per_token(laps: Iterable[Lap], key: str) -> float:
    """Seconds per sampled token: sides draw different lengths, so steps are compared by what they produced."""
    return statistics.median(float(lap[key]) / max(1.0, float(lap["tokens"])) for lap in laps)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What both races are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no run later than this")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", default=list(NUM_STEPS), help="only these")
    parser.add_argument("--workloads", nargs="*", default=["short", "long", "prefix"], help="only these")
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), help="only these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed steps a run; 0: by model")
    parser.add_argument("--store", type=Path, default=LAPS, help="where laps are kept")
    parser.add_argument("--try-micro-batches", action="store_true", help="time TRL in float32 at 8, 16, 32 and 64 rows")
    args = parser.parse_args()
    if args.try_micro_batches:
        base = CONTENDERS["trl float32"][1]
        CONTENDERS.update({f"trl float32, {rows} rows": ("trl", {**base, "micro_batch": rows}) for rows in (8, 16, 64)})
        args.contenders = ["heliostat", *(name for name in CONTENDERS if name.startswith("trl float32"))]
    if not args.table:
        race([entry for entry in ENTRIES if entry.model in args.models and entry.workload in args.workloads], args)
    print(table(read(args.store)))


if __name__ == "__main__":
    main()

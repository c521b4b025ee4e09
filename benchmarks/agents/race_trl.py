"""The race against TRL's tool loop: same environment class, model files, problems, group size, limits and objective.

    python benchmarks/agents/race_trl.py --trl-python PYTHON --minutes 20      # again goes on
    python benchmarks/agents/race_trl.py --trl-python PYTHON --tune            # TRL's fastest settings here
    python benchmarks/agents/race_trl.py --table

PYTHON is an interpreter that has TRL, which wants other versions of what we use:

    python -m venv .venv-trl
    .venv-trl/bin/python -m pip install -c constraints.txt torch
    .venv-trl/bin/python -m pip install -e '.[peers]'

The first run teaches a model to call, which is kept in ``--work``. A round is one run of each contender on each cell,
the sides taking turns. Of every run the first step warms up. What is compared is the median of CPU seconds per sampled
token, of all processes of a side; turns and tokens are counted on both sides and printed. A run is stored when it ends
and not made again, and runs of other code than today's are thrown away first.

Left out: whether both sides learn the same (``race_trl/learning``), vLLM-backed TRL, and several devices.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cards import write_problems
from tool_sides import WARM_UP_STEPS

HERE = Path(__file__).resolve().parent
LAPS = HERE / "results" / "race_trl.jsonl"
Lap = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A model and the workload of one step."""

    model: str = "5M"
    listing: str = "names"
    num_threads: int = 1
    num_prompts: int = 8
    group_size: int = 8
    num_steps: int = 1
    num_rounds: int = 3

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.group_size


CELLS = {
    "5M": Cell(),
    "5M, two threads": Cell(num_threads=2),
    "5M, schemas in the prompt": Cell(listing="schemas"),
    "SmolLM2-135M": Cell("smollm2-135m", num_prompts=2, num_steps=1, num_rounds=1),
}

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "heliostat": ("heliostat", {}),
    "trl": ("trl", {"bf16": False, "gradient_checkpointing": False, "micro_batch": 32}),
}
"""Name -> side and its settings; ``--tune`` shows that these are TRL's fastest here."""

SWITCHES = [(bf16, checkpointing) for bf16 in (False, True) for checkpointing in (False, True)]
MICRO_BATCHES = (8, 16, 64)


def code() -> str:
    """Return a fingerprint of all that a time depends on: the library's sources and both sides' set-up."""
    files = [HERE / f"{name}.py" for name in ("caller", "cards", "tool_sides")]
    files += sorted((HERE.parents[1] / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def run_side(side: str, job: Mapping[str, Any], python: str, work: Path) -> list[Lap]:
    """One run of one side in a process of its own; its laps."""
    path = work / "job.json"
    path.write_text(json.dumps(job))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job["num_threads"]),
        "MKL_NUM_THREADS": str(job["num_threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    words = [python, str(HERE / "tool_sides.py"), side, str(path)]
    done = subprocess.run(words, env=environment, text=True, capture_output=True, check=False)
    laps = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("LAP ")]
    if done.returncode or not laps:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return laps


def job_of(cell: Cell, settings: Mapping[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """All that a side is told."""
    return {
        **asdict(cell),
        **settings,
        "micro_batch": min(settings.get("micro_batch", 8), cell.num_rows),
        "num_steps": cell.num_steps + WARM_UP_STEPS,
        "model": str(work / f"{cell.model}-{cell.listing}"),
        "problems": str(write_problems(work)),
        "seed": seed,
    }


def prepare(cells: Iterable[Cell], work: Path) -> None:
    """Train the callers that are missing, each in a process of its own."""
    for model, listing in {(cell.model, cell.listing) for cell in cells}:
        if not (work / f"{model}-{listing}").exists():
            lines = f"import caller, pathlib; caller.write_caller({model!r}, {listing!r}, pathlib.Path({str(work)!r}))"
            subprocess.run([sys.executable, "-c", lines], cwd=HERE, check=True)


def read(path: Path) -> list[Lap]:
    """Everything stored."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fresh(path: Path) -> list[Lap]:
    """Return the stored laps of today's code; throw the others away."""
    stored = read(path)
    kept = [lap for lap in stored if lap["code"] == code()]
    if len(kept) < len(stored):
        path.write_text("".join(json.dumps(lap) + "\n" for lap in kept))
    return kept


def keep(path: Path, laps: Iterable[Lap]) -> None:
    """Store a finished run: at once, so that a killed race loses no other."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps({**lap, "code": code()}) + "\n" for lap in laps))


def race(names: Sequence[str], args: argparse.Namespace) -> None:
    """All runs that are missing, round by round, until the time is up."""
    done = {(lap["cell"], lap["contender"], lap["round"]) for lap in fresh(args.store)}
    rounds = args.rounds or max(CELLS[name].num_rounds for name in names)
    runs = [
        (number, name, contender)
        for number in range(rounds)
        for name in names
        for contender in (list(CONTENDERS) if number % 2 == 0 else list(CONTENDERS)[::-1])
        if number < (args.rounds or CELLS[name].num_rounds)
        if (name, contender, number) not in done
    ]
    deadline = time.monotonic() + 60 * args.minutes
    for index, (number, name, contender) in enumerate(runs):
        if time.monotonic() > deadline:
            print(f"time is up: {len(runs) - index} of {len(runs)} runs are left; the same command goes on")
            return
        side, settings = CONTENDERS[contender]
        python = args.trl_python if side == "trl" else sys.executable
        laps = run_side(side, job_of(CELLS[name], settings, number, args.work), python, args.work)
        keep(args.store, [{"cell": name, "contender": contender, "round": number, **lap} for lap in laps])
        median = statistics.median(lap["cpu_s"] for lap in timed(laps))
        print(f"round {number}: {name}, {contender}: {median:.2f} CPU s a step", flush=True)


def tune(cell: Cell, args: argparse.Namespace) -> None:
    """Time TRL with each pair of switches at 32 rows, then other micro-batches with the fastest pair."""
    tried: dict[tuple[bool, bool, int], float] = {}

    def seconds(bf16: bool, checkpointing: bool, rows: int) -> float:
        settings = {"bf16": bf16, "gradient_checkpointing": checkpointing, "micro_batch": rows}
        laps = timed(run_side("trl", job_of(cell, settings, 0, args.work), args.trl_python, args.work))
        tried[bf16, checkpointing, rows] = statistics.median(map(per_token, laps))
        median = {key: statistics.median(lap[key] for lap in laps) for key in ("cpu_s", "rollout_cpu_s", "tokens")}
        print(json.dumps(settings | {"ms_per_token": 1000 * tried[bf16, checkpointing, rows]} | median), flush=True)
        return tried[bf16, checkpointing, rows]

    bf16, checkpointing = min(SWITCHES, key=lambda pair: seconds(pair[0], pair[1], 32))
    for rows in MICRO_BATCHES:
        seconds(bf16, checkpointing, rows)
    print("fastest (bf16, gradient checkpointing, rows):", min(tried, key=lambda each: tried[each]))


def timed(laps: Iterable[Lap]) -> list[Lap]:
    """The laps after the warm-up."""
    return [lap for lap in laps if lap["step"] > WARM_UP_STEPS]


def per_token(lap: Lap) -> float:
    """CPU seconds per sampled token: sides draw different lengths, so steps are compared by what they produced."""
    return float(lap["cpu_s"]) / float(lap["tokens"])


def rollout_per_token(lap: Lap) -> float:
    """Those of sampling, the environment and the rewards."""
    return float(lap["rollout_cpu_s"]) / float(lap["tokens"])


def update_per_token(lap: Lap) -> float:
    """Those of the rest of the step."""
    return per_token(lap) - rollout_per_token(lap)


def wall_per_token(lap: Lap) -> float:
    """Wall seconds per sampled token."""
    return float(lap["wall_s"]) / float(lap["tokens"])


def table(laps: Sequence[Lap]) -> str:
    """A line for every contender on every cell, as Markdown; ratios compare with our side."""
    lines = [
        "| cell | contender | CPU s/step | x [rounds] | rollout x | update x | wall s/step | wall x | tokens/CPU s "
        "| peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in CELLS:
        here = [lap for lap in timed(laps) if lap["cell"] == cell]
        ours = [lap for lap in here if lap["contender"] == "heliostat"]
        for contender in dict.fromkeys(lap["contender"] for lap in here) if ours else ():
            mine = [lap for lap in here if lap["contender"] == contender]
            parts = [ratio(mine, ours, cost) for cost in (rollout_per_token, update_per_token)]
            rate = 1 / statistics.median(map(per_token, mine))
            peak = max(lap["peak_mib"] for lap in laps if (lap["cell"], lap["contender"]) == (cell, contender))
            lines.append(
                f"| {cell} | {contender} | {median_of(mine, 'cpu_s'):.2f} | {ratio(mine, ours, per_token)}"
                f"{spread(mine, ours)} | {' | '.join(parts)} | {median_of(mine, 'wall_s'):.2f} "
                f"| {ratio(mine, ours, wall_per_token)} | {rate:.0f} | {peak:.0f} |"
            )
    return "\n".join(lines)


def counts(laps: Sequence[Lap]) -> str:
    """Did both sides do the same? Means of a step, as Markdown."""
    keys = ("episodes", "turns", "tokens", "environment_tokens", "reward", "zero_signal")
    lines = [f"| cell | contender | {' | '.join(keys)} |", "|---|---|" + "--:|" * len(keys)]
    for cell, contender in dict.fromkeys((lap["cell"], lap["contender"]) for lap in laps):
        mine = [lap for lap in timed(laps) if (lap["cell"], lap["contender"]) == (cell, contender)]
        means = [f"{statistics.mean(lap[key] for lap in mine):.4g}" for key in keys]
        lines.append(f"| {cell} | {contender} | {' | '.join(means)} |")
    return "\n".join(lines)


def median_of(laps: Iterable[Lap], key: str) -> float:
    """Median of one entry."""
    return statistics.median(float(lap[key]) for lap in laps)


def ratio(mine: Iterable[Lap], ours: Iterable[Lap], cost: Callable[[Lap], float]) -> str:
    """Ratio of the medians over all rounds."""
    return f"{statistics.median(map(cost, mine)) / statistics.median(map(cost, ours)):.2f}"


def spread(mine: Sequence[Lap], ours: Sequence[Lap]) -> str:
    """The least and the greatest ratio of one round; empty with one round or for our own side."""
    rounds = sorted({lap["round"] for lap in mine} & {lap["round"] for lap in ours})
    if len(rounds) < 2 or mine == ours:
        return ""
    of_round = [float(ratio(in_round(mine, number), in_round(ours, number), per_token)) for number in rounds]
    return f" [{min(of_round):.2f}, {max(of_round):.2f}]"


def in_round(laps: Iterable[Lap], number: int) -> list[Lap]:
    """The laps of one round."""
    return [lap for lap in laps if lap["round"] == number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--work", type=Path, default=Path("/tmp/race-agents"), help="where trained callers are kept")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help="only these")
    parser.add_argument("--rounds", type=int, default=0, help="0: by cell")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no run later than this")
    parser.add_argument("--store", type=Path, default=LAPS, help="where laps are kept")
    parser.add_argument("--tune", action="store_true", help="time TRL's settings on the first cell, and store nothing")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    args = parser.parse_args()
    if not args.table:
        args.work.mkdir(parents=True, exist_ok=True)
        prepare([CELLS[name] for name in args.cells], args.work)
        if args.tune:
            tune(CELLS[args.cells[0]], args)
            return
        race(args.cells, args)
    print(table(read(args.store)), counts(read(args.store)), sep="\n\n")


if __name__ == "__main__":
    main()

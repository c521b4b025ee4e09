"""Cold starts: CPU seconds (user and system, children included) and wall seconds of fresh processes, as medians.

    python benchmarks/cold_start.py [--repeats 5] [--only demo]

Each command runs in an empty folder. ``demo`` is ``heliostat train demo`` with a warm start of one step, until the
first row of ``metrics.jsonl``: imports, audit, model, held-out results before, and one step; Linux only. ``torch`` and
``transformers`` are the floor of everything that samples. Left out: the first ever import, which compiles bytecode (one
run is made and not counted).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FIRST_RESULT = """
import heliostat
rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
small = {"model.settings": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2}}
quick = {"train.num_steps": 2, "rollout.prompts_per_step": 4, "eval.every": 0, "eval.final_samples": 1}
heliostat.post_train(model="tiny", data=rows, rewards=["numeric"], overrides=small | quick)
"""
DECOMPOSITION = """
import numpy as np
from heliostat.linalg import SparsityPattern, inverse_decomposition
inverse_decomposition(np.eye(4) + 1, SparsityPattern.banded(4, 1))
"""
CLI = [sys.executable, "-m", "heliostat"]
COMMANDS = {
    "help": [*CLI, "--help"],
    "runs": [*CLI, "runs"],
    "import": [sys.executable, "-c", "import heliostat"],
    "torch": [sys.executable, "-c", "import torch"],
    "transformers": [sys.executable, "-c", "from transformers import AutoModelForCausalLM, PreTrainedModel"],
    "train-import": [sys.executable, "-c", "import heliostat.train"],
    "decomposition": [sys.executable, "-c", DECOMPOSITION],
    "first-result": [sys.executable, "-c", FIRST_RESULT],
}
DEMO = [*CLI, "train", "demo", "--warm_start.num_steps", "1"]

Seconds = tuple[float, float]  # CPU, wall


def until_exit(command: list[str], folder: Path) -> Seconds:
    """Run a command to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def until_first_step(command: list[str], folder: Path) -> Seconds:
    """Run a training command in a session of its own until ``metrics.jsonl`` has a row, then stop all of it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not any(path.stat().st_size for path in folder.glob("runs/*/metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before its first step")
            time.sleep(0.02)
        return session_cpu_seconds(process.pid), time.perf_counter() - start
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def session_cpu_seconds(session: int) -> float:
    """CPU seconds so far of all processes of a session, ended children included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile, and its parent counts it
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def median_of(run: Callable[[list[str], Path], Seconds], command: list[str], repeats: int) -> Seconds:
    """Run once to fill the caches, then ``repeats`` times, each in an empty folder."""
    taken = []
    for _ in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            taken.append(run(command, Path(folder)))
    cpu, wall = zip(*taken[1:], strict=True)
    return statistics.median(cpu), statistics.median(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, "demo"], default=[*COMMANDS, "demo"])
    arguments = parser.parse_args()
    print("| start | CPU s | wall s |\n|---|--:|--:|")
    for name in arguments.only:
        run, command = (until_first_step, DEMO) if name == "demo" else (until_exit, COMMANDS[name])
        cpu, wall = median_of(run, command, arguments.repeats)
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()

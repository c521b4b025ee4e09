"""Break runs on purpose and count what survives: ``python -m tests.torture [--seed 0] [--kills 40] [--flips 200]``.

Every row prints "N of N". A run counts as survived if the same call continues it, and it ends with the same model,
checkpoints, metrics, evaluations and transcripts as an undisturbed run, bit for bit. A flip counts as found if it is
said. Minutes on two cores.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from heliostat.config import ConfigError, Recipe
from heliostat.storage import Damaged, append_rows, changed_files, check_folder, extent_of, read_rows, truncate_rows
from heliostat.traces import Bank, BankError, Findings, check_bank, whole_traces
from heliostat.train import run_recipe
from heliostat.train.checkpoint import Checkpoints
from heliostat.train.guarded_step import TrainingDiverged
from heliostat.train.prefixing import kept_donors
from heliostat.train.runtime import Runtime
from heliostat.train.trainer import Trainer
from tests.conftest import in_child
from tests.kills import count_events, killed_at
from tests.promises import small

SETTINGS = {
    "warm_start.num_steps": 4,
    "rollout.prompts_per_step": 3,
    "task.num_heldout": 6,
    "eval.num_problems": 4,
    "eval.every": 2,
    "train.num_steps": 5,
    "train.checkpoint_every": 2,
}
STEP = Trainer._step
BROKEN_AT = 5
"""The position in the data whose numbers break, so that the guard goes back."""


def breaking_step(trainer: Trainer, step: int) -> dict[str, float]:
    if step + trainer.guard.skipped == BROKEN_AT:
        raise TrainingDiverged("the loss is not finite")
    return STEP(trainer, step)


class Course:
    """One recipe, how it ends undisturbed, and ways to disturb it."""

    def __init__(self, folder: Path, rolled_back: bool = False, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.recipe: Recipe = small.recipe(folder, **{**SETTINGS, **settings})
        self.rolled_back = rolled_back
        self.whole = folder / "whole"
        self.num_events = count_events(self.run(self.whole))
        self.ended = content(self.whole)

    def run(self, run_dir: Path) -> Callable[[], None]:
        def work() -> None:
            if self.rolled_back:
                Trainer._step = breaking_step  # type: ignore[method-assign]
            with contextlib.redirect_stdout(io.StringIO()):
                assert run_recipe(self.recipe, run_dir, "torture").exit_code == 0

        return work

    def survives(self, event: int) -> bool:
        """Kill a run at one of its events and continue it."""
        run_dir = self.folder / f"killed-{event}"
        killed_at(event, self.run(run_dir))
        code = os.waitstatus_to_exitcode(os.waitpid(in_child(self.run(run_dir)), 0)[1])
        alike = code == 0 and content(run_dir) == self.ended
        if alike:
            shutil.rmtree(run_dir)
        return alike


def content(run_dir: Path) -> dict[str, object]:
    """Everything about a run that does not depend on the clock."""
    texts = {name: (run_dir / name).read_bytes() for name in ("evals.jsonl", "transcripts.jsonl")}
    model = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    weights = {name: (run_dir / "checkpoints" / name / "model.safetensors").read_bytes() for name in checkpoints}
    names = sorted(path.name for path in run_dir.iterdir())
    return {**texts, "model": model, "weights": weights, "names": names, "metrics": small.metrics(run_dir)}


def kills(course: Course, num: int, randomness: random.Random) -> tuple[int, int]:
    """Kill at events drawn without replacement; those near checkpoints are many, since that is where files are."""
    events = randomness.sample(range(1, course.num_events + 1), min(num, course.num_events))
    return sum(course.survives(event) for event in events), len(events)


def flips(path: Path, num: int, randomness: random.Random) -> Iterator[None]:
    """Flip one bit of a file at a time, and put it back."""
    raw = path.read_bytes()
    for _ in range(num):
        position = randomness.randrange(len(raw))
        flipped = bytearray(raw)
        flipped[position] ^= 1 << randomness.randrange(8)
        path.write_bytes(bytes(flipped))
        yield
    path.write_bytes(raw)


def checkpoint_flips(run_dir: Path, num: int, randomness: random.Random) -> dict[str, tuple[int, int]]:
    import torch

    checkpoints = Checkpoints(run_dir / "checkpoints", 2, Runtime(torch.device("cpu")))
    newest = checkpoints.steps()[-1]
    found = {}
    for path in sorted((run_dir / "checkpoints" / f"step_{newest:06d}").iterdir()):
        results = [checkpoints.find_newest().step != newest for _ in flips(path, num, randomness)]
        found[f"flips of checkpoints/*/{path.name}, found"] = sum(results), len(results)
    return found


def log_flips(run_dir: Path, num: int, randomness: random.Random) -> dict[str, tuple[int, int]]:
    found = {}
    for name in ("metrics.jsonl", "evals.jsonl", "transcripts.jsonl"):
        path = run_dir / name
        extent = extent_of(path)
        results = [
            raises(Damaged, lambda path=path, extent=extent: truncate_rows(path, extent))
            for _ in flips(path, num, randomness)
        ]
        found[f"flips of {name}, found when continued"] = sum(results), len(results)
    return found


def ended_flips(run_dir: Path, num: int, randomness: random.Random) -> dict[str, tuple[int, int]]:
    found = {}
    for name in ("recipe.toml", "versions.json", "summary.json", "model/model.safetensors", "manifest.json"):
        results = [bool(changed_files(run_dir)) for _ in flips(run_dir / name, num, randomness)]
        found[f"flips of {name} after the end, found"] = sum(results), len(results)
    return found


def raises(kind: type[Exception], work: Callable[[], object]) -> bool:
    try:
        work()
    except kind:
        return True
    return False


def bank_flips(folder: Path, num: int, randomness: random.Random) -> tuple[int, int]:
    """A flip is survived if every trace that is read is one that was written, or the damage is reported."""
    from tests.unit.traces.made import make_trace

    path = folder / "flipped.bank"
    with Bank.open(path) as bank:
        bank.append([make_trace(number) for number in range(60)])
        bank.query("PRAGMA wal_checkpoint(TRUNCATE)")
        written = [repr(trace) for trace in bank]
    survived = 0
    for _ in flips(path, num, randomness):
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            with Bank.open(path) as bank:
                findings, read = check_bank(bank), [repr(trace) for trace in whole_traces(bank, Findings())]
            survived += bool(findings.num_problems) or read == written
        except BankError:
            survived += 1
    return survived, num


def donor_flips(folder: Path, num: int, randomness: random.Random) -> tuple[int, int]:
    from heliostat.traces.cuts import Donor
    from heliostat.train.prefixing import Donors

    path = folder / "prefixes.json"
    kept_donors(path, lambda: Donors((Donor("p", (1, 2, 3), 4),), 1.0, 0))
    results = [
        raises(ConfigError, lambda: kept_donors(path, lambda: Donors((), 0.0, 0))) for _ in flips(path, num, randomness)
    ]
    return sum(results), len(results)


def torn_logs(folder: Path) -> tuple[int, int]:
    """A log that ends anywhere: the rows before are read, and the next one is appended after them."""
    path = folder / "torn.jsonl"
    rows = [{"step": number, "text": "等于几 \u2028 \x85 é"} for number in range(4)]
    append_rows(path, rows)
    whole, survived = path.read_bytes(), 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        before = read_rows(path).rows
        append_rows(path, [{"step": 9}])
        survived += before == rows[: len(before)] and read_rows(path).rows == [*before, {"step": 9}]
    return survived, len(whole)


def reference_flips(run_dir: Path, num: int, randomness: random.Random) -> tuple[int, int]:
    path = run_dir / "reference" / "model.safetensors"
    results = [raises(Damaged, lambda: check_folder(path.parent)) for _ in flips(path, num, randomness)]
    return sum(results), len(results)


def table(folder: Path, seed: int, num_kills: int, num_flips: int) -> Iterator[tuple[str, int, int]]:
    """Every row: what was done, how often it was survived, of how many times."""
    randomness = random.Random(seed)
    courses = {
        "kills of a run, continued to the same bits": Course(folder / "plain"),
        "kills of a run that keeps one checkpoint": Course(folder / "one", train__keep_checkpoints=1),
        "kills of a run that rolls back": Course(folder / "back", rolled_back=True),
        "kills of a run with a reference policy": Course(
            folder / "reference", objective__name="grpo", objective__kl_ref=0.1
        ),
    }
    for name, course in courses.items():
        yield name, *kills(course, num_kills, randomness)
    whole = courses["kills of a run, continued to the same bits"].whole
    for breaking in (checkpoint_flips, log_flips, ended_flips):
        for name, counts in breaking(whole, num_flips, randomness).items():
            yield name, *counts
    reference = courses["kills of a run with a reference policy"].whole
    yield "flips of reference/model.safetensors, found", *reference_flips(reference, num_flips, randomness)
    yield "flips of prefixes.json, found", *donor_flips(folder, num_flips, randomness)
    yield "flips of a trace bank that change no trace unseen", *bank_flips(folder, num_flips, randomness)
    yield "logs torn at every byte, read and appended to", *torn_logs(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=40, help="of each kind of run")
    parser.add_argument("--flips", type=int, default=200, help="of each file")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, num, total in table(Path(folder), args.seed, args.kills, args.flips):
            print(f"{name:60s} {num} of {total}", flush=True)
            lost += total - num
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())

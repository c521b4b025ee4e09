"""Bits flipped in every file of a run's folder, one at a time: each is said where training would read it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from heliostat.config import ConfigError
from heliostat.outputs import MARKER, claim_folder
from heliostat.storage import Damaged, append_rows, changed_files, check_folder, extent_of, read_rows, truncate_rows
from heliostat.traces import Bank, BankError, RowIssues, check_bank, whole_traces
from heliostat.train.data.prefixes import kept_prefix_sources
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.run_folder.checkpoints import Checkpoints


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
    checkpoints = Checkpoints(run_dir / "checkpoints", 2, Runtime(torch.device("cpu")))
    newest = checkpoints.steps()[-1]
    found = {}
    folder = run_dir / "checkpoints" / f"step_{newest:06d}"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        points = [checkpoints.find_newest() for _ in flips(path, num, randomness)]
        results = [point.step != newest or not point.is_intact for point in points]
        found[f"flips of checkpoints/*/{path.relative_to(folder).as_posix()}, found"] = sum(results), len(results)
    return found


def log_flips(run_dir: Path, num: int, randomness: random.Random) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(run_dir.glob("*.jsonl")):
        name = path.name
        extent = extent_of(path)
        results = [
            raises(Damaged, lambda path=path, extent=extent: truncate_rows(path, extent))
            for _ in flips(path, num, randomness)
        ]
        found[f"flips of {name}, found when continued"] = sum(results), len(results)
    return found


def ended_flips(run_dir: Path, num: int, randomness: random.Random) -> dict[str, tuple[int, int]]:
    """Every file of a run that has ended, but for its checkpoints (above) and what nobody reads: lock and report."""
    found = {}
    for path in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        name = path.relative_to(run_dir).as_posix()
        if name.split("/")[0] in ("checkpoints", "run.lock", "report.html", MARKER):
            continue
        results = [bool(changed_files(run_dir)) for _ in flips(path, num, randomness)]
        found[f"flips of {name} after the end, found"] = sum(results), len(results)
    results = [
        raises(ConfigError, lambda: claim_folder(run_dir, "heliostat train"))
        for _ in flips(run_dir / MARKER, num, randomness)
    ]
    found[f"flips of {MARKER}, found when continued"] = sum(results), len(results)
    return found


def raises(kind: type[Exception], work: Callable[[], object]) -> bool:
    try:
        work()
    except kind:
        return True
    return False


def bank_flips(folder: Path, num: int, randomness: random.Random) -> tuple[int, int]:
    """A flip is survived if every trace that is read is one that was written, or the damage is reported."""
    from tests.support.traces import make_trace

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
                issues, read = check_bank(bank), [repr(trace) for trace in whole_traces(bank, RowIssues())]
            survived += bool(issues.num_issues) or read == written
        except BankError:
            survived += 1
    return survived, num


def donor_flips(folder: Path, num: int, randomness: random.Random) -> tuple[int, int]:
    from heliostat.traces.cuts import PrefixSource
    from heliostat.train.data.prefixes import PrefixSources

    path = folder / "prefixes.json"
    kept_prefix_sources(path, lambda: PrefixSources((PrefixSource("p", (1, 2, 3), 4),), 1.0, 0))
    results = [
        raises(ConfigError, lambda: kept_prefix_sources(path, lambda: PrefixSources((), 0.0, 0)))
        for _ in flips(path, num, randomness)
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

"""Run W&B (offline), trackio and TensorBoard on a real run, and read back what each of them stored.

    python tests/trackers/try_trackers.py [FOLDER]        (make trackers; FOLDER holds the environment)

The environment is a layer over the one of this interpreter: trackio brings other versions of what is pinned there. The
run is interrupted (Ctrl-C) once step 5 is written, and continued. Then clients fail: their folder is unusable, or W&B's
own process is killed.
"""

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
PINS = ("wandb==0.31.0", "trackio==0.43.0")
NOT_INSTALLED = 3
"""The exit code where the index lacks the clients."""
INTERRUPTED_AT = 5
NUM_WARM, NUM_STEPS = 6, 8
OPTIONS = {
    "warm_start.num_steps": NUM_WARM,
    "train.num_steps": NUM_STEPS,
    "train.checkpoint_every": 3,
    "run.num_threads": 1,
    "rollout.prompts_per_step": 4,
    "rollout.max_new_tokens": 8,
    "task.num_heldout": 20,
    "eval.num_problems": 20,
    "eval.final_samples": 1,
    "tracking.tensorboard": "true",
    "tracking.wandb": "trial",
    "tracking.trackio": "trial",
}
FAILING = """
import os, signal, subprocess, sys, time
from pathlib import Path
from heliostat.config import TrackingSection
from heliostat.trackers import open_services

service, kills = sys.argv[1], sys.argv[2] == "kill"
notes = []
(tracker,) = open_services(TrackingSection(**{service: "failing"}), Path.cwd(), {}, notes.append)
tracker.log(1, {"reward/mean": 0.5})
if kills:
    time.sleep(1)
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    (core,) = [line.split()[0] for line in listed.stdout.splitlines() if "wandb" in line]
    os.kill(int(core), signal.SIGKILL)
for step in range(2, 9):
    tracker.log(step, {"reward/mean": 0.5})
tracker.close()
print("\\n".join(f"note: {note}" for note in notes))
"""


def main() -> None:
    """Install, run, interrupt, continue, read back, and let the clients fail."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, as its children do
    environment = Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT / ".venv-trackers"
    python = layer(environment)
    with tempfile.TemporaryDirectory(prefix="heliostat-trackers-") as name:
        folder = Path(name).resolve()
        run_and_continue(python, folder)
        stored = json.loads(call(python, folder, str(Path(__file__)), "--read", str(folder)).stdout)
        for service, rows in stored.items():
            check_rows(service, rows, folder)
        check_failures(python, folder)


def layer(folder: Path) -> Path:
    """Create the environment with the clients over this interpreter's own, and return its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        below = sysconfig.get_path("purelib")
        (next(folder.glob("lib/python*/site-packages")) / "below.pth").write_text(below + "\n")
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *PINS]
    if subprocess.run(install, check=False).returncode:
        print(f"{' and '.join(PINS)} cannot be installed here, so nothing was tried")
        raise SystemExit(NOT_INSTALLED)
    return python


def variables(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose trackers keep everything in ``folder``."""
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    quiet = {"WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), **own, **quiet}


def call(python: Path, folder: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, and raise if it fails."""
    command = [str(python), *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**variables(folder), **changed}, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode})\n{done.stdout}\n{done.stderr}")
    return done


def run_and_continue(python: Path, folder: Path) -> None:
    """Interrupt a run once step ``INTERRUPTED_AT`` is in its metrics, and continue it to its end."""
    options = [part for key, value in OPTIONS.items() for part in (f"--{key}", str(value))]
    command = ["-m", "heliostat", "train", "demo", "--run", str(folder / "run"), *options]
    begun = subprocess.Popen(
        [str(python), *command], cwd=folder, env=variables(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = folder / "run" / "metrics.jsonl"
    while INTERRUPTED_AT not in steps_in(metrics) and begun.poll() is None:
        time.sleep(0.05)
    if begun.poll() is not None:
        raise SystemExit(f"the run ended ({begun.returncode}) before it could be interrupted")
    begun.send_signal(signal.SIGINT)
    begun.wait(300)
    if NUM_STEPS in steps_in(metrics):
        raise SystemExit("the run ended before it was interrupted")
    call(python, folder, *command)


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    """Read whole lines of a file of metrics, none if there is no file yet."""
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_in(metrics: Path) -> set[int]:
    """Return the steps in a file of metrics."""
    return {row["step"] for row in rows_of(metrics)}


def check_rows(service: str, stored: dict[str, Any], folder: Path) -> None:
    """Compare what a service stored with metrics.jsonl: one axis, and every value once."""
    truth = rows_of(folder / "run" / "metrics.jsonl")
    wanted = [
        (row["step"], key, value) for row in truth for key, value in row.items() if key != "step" and value is not None
    ]
    steps = sorted({step for step, _, _ in wanted})
    assert steps == list(range(steps[0], NUM_STEPS + 1)), f"the run itself has gaps: {steps}"
    found = Counter((step, key) for step, key, _ in stored["values"])
    assert set(found) == {(step, key) for step, key, _ in wanted}, (
        f"{service} has other metrics: {sorted(set(found) ^ {(step, key) for step, key, _ in wanted})[:5]}"
    )
    repeated = sorted({step for (step, _), count in found.items() if count > 1})
    assert not repeated, f"{service} has steps twice: {repeated}"
    values = {(step, key): value for step, key, value in stored["values"]}
    for step, key, value in wanted:
        assert abs(values[step, key] - value) <= 1e-6 * max(1.0, abs(value)), f"{service}: {key} at {step}"
    assert stored["report"] == str(folder / "run" / "report.html"), f"{service} names {stored['report']}"
    assert Path(stored["report"]).is_file()
    print(f"{service}: {len(wanted)} values of steps {steps[0]} to {steps[-1]}, each once, and the report's path")


def check_failures(python: Path, folder: Path) -> None:
    """Let clients fail in processes of their own, each of which must end well and say so once."""
    blocked = folder / "a file"
    blocked.write_text("no folder can be made here")
    for service, how, changed, sentence in (
        ("wandb", "kill", {}, "note: wandb failed ("),
        ("wandb", "unusable folder", {"WANDB_DIR": str(blocked / "in"), **elsewhere(folder)}, f"wandb sync {folder}"),
        ("trackio", "unusable folder", {"TRACKIO_DIR": str(blocked / "in")}, "could not be persisted"),
    ):
        place = folder / f"{service} {how}"
        place.mkdir()
        done = call(python, place, "-c", FAILING, service, how, **changed)
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if sentence in line]
        assert len(said) == 1, f"{service} with {how} said {done.stdout}\n{done.stderr}"
        assert done.stdout.count("note: ") <= 1, f"there are several warnings: {done.stdout}"
        print(f"{service}, {how}: {said[0].replace(str(folder), 'FOLDER')}")


def elsewhere(folder: Path) -> dict[str, str]:
    """Return variables for W&B, which falls back to the folder for temporary files and prints that path."""
    return {"TMPDIR": str(folder), "WANDB_SILENT": "false"}


def read_all(folder: Path) -> dict[str, Any]:
    """Read every service's storage, with the services' own formats; runs in their environment."""
    return {
        "wandb": read_wandb(sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))),
        "trackio": read_trackio(folder),
        "tensorboard": read_tensorboard(folder / "run" / "tensorboard"),
    }


def read_wandb(files: Iterable[Path]) -> dict[str, Any]:
    """Read the offline files of one run, its sessions in order, with W&B's own records."""
    from wandb.proto.wandb_internal_pb2 import Record

    values: list[tuple[int, str, float]] = []
    axes, report, ids = set(), "", set()
    for file in files:
        ids.add(file.stem)
        for content in log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                row = {key: value for key, value in row.items() if not key.startswith("_")}
                step = row.pop("step")
                values += [(step, key, value) for key, value in row.items()]
            elif kind == "metric" and record.metric.glob_name == "*":
                axes.add(record.metric.step_metric)
            elif kind == "run":
                known = {item.key: item.value_json for item in record.run.config.update}
                report = json.loads(known["report"]) if "report" in known else report
    assert axes == {"step"}, f"the axis of W&B's charts is {axes}"
    assert len(ids) == 1, f"W&B has several runs: {ids}"
    return {"values": values, "report": report}


def log_records(data: bytes) -> Iterable[bytes]:
    """Yield the records of a log in LevelDB's format, which W&B's offline files are after seven bytes of their own."""
    position, block, record = 7, 32768, b""
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def read_trackio(folder: Path) -> dict[str, Any]:
    """Read the run through trackio's own storage class, and count its rows in the SQLite file itself."""
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("trial", "run")
    with sqlite3.connect(folder / "trackio" / "trial.db") as database:
        (count,) = database.execute("SELECT count(*) FROM metrics").fetchone()
    assert count == len(logs), f"trackio's file has {count} rows, and its reader gives {len(logs)}"
    values = []
    for row in logs:
        step = row["__step"] if "__step" in row else row["step"]
        numbers = {key: value for key, value in row.items() if "/" in key and value is not None}
        values += [(step, key, value) for key, value in numbers.items()]
    return {"values": values, "report": SQLiteStorage.get_run_config("trial", "run")["report"]}


def read_tensorboard(folder: Path) -> dict[str, Any]:
    """Read all events, repeated ones included."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values, report = [], ""
    for file in sorted(folder.glob("events.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        values += [(e.step, key, e.value) for key in events.Tags()["scalars"] for e in events.Scalars(key)]
        report = events.Tensors("report/text_summary")[0].tensor_proto.string_val[0].decode()
    return {"values": values, "report": report}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read_all(Path(sys.argv[2]))))
    else:
        main()

"""The run folder: one owner at a time, every file in a known place, nothing half-written.

    heliostat-run.json (the marker)  recipe.toml  versions.json  metrics.jsonl  evals.jsonl  transcripts.jsonl
    events.jsonl  abandoned.jsonl  checkpoints/  model/  report.html  summary.json  reference/ (of objectives that need
    one)  adapter/ (LoRA)

Left out: the contents of a checkpoint (``train.checkpoint``) and of the page (``report``).
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import platform
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from heliostat.config import ConfigError, Recipe, RunSection, dump_recipe, load_recipe
from heliostat.outputs import claim_folder, release_folder
from heliostat.tracking import read_metrics, rewind
from heliostat.train.evaluate import Evaluation
from heliostat.train.records import evaluation_from_rows

_STARTING = ("checkpoints", "prefixes.json", "trackers.json", "versions.json", "recipe.toml", "run.lock")
"""What a run writes before anything is refused."""


class RunLocked(RuntimeError):
    """Another process is working in the run folder."""


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def default_run_dir(section: RunSection, recipe_name: str) -> Path:
    """``root/name``, or a dated name that is not taken yet."""
    if section.name:
        return Path(section.root) / section.name
    dated = Path(section.root) / f"{recipe_name}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (dated.with_name(f"{dated.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([dated], others) if not path.exists())


class RunFolder:
    """A locked run folder.

    Args:
        writes: whether this process is the one that writes here; what others of a run would write is left out.

    Raises:
        RunLocked: another process holds it.
        ConfigError: it holds a run of a different recipe, or anything that no run of ours put there.
    """

    def __init__(self, path: Path, recipe: Recipe, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        if writes:
            self._is_new = claim_folder(path, "heliostat train", _is_older_run)
            self._lock = self._take_lock()
            self._check_recipe(recipe)
            self.checkpoints.mkdir(exist_ok=True)
        self.metrics = path / "metrics.jsonl"
        self.evals = path / "evals.jsonl"
        self.transcripts = path / "transcripts.jsonl"
        self.events = path / "events.jsonl"
        self.abandoned = path / "abandoned.jsonl"
        self.summary = path / "summary.json"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.prefixes = path / "prefixes.json"
        self.reference = path / "reference"

    def _take_lock(self) -> TextIO:
        lock = (self.path / "run.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise RunLocked(
                f"{self.path} is in use by process {owner or 'unknown'}; wait for it, or choose another folder with "
                "--run"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _check_recipe(self, recipe: Recipe) -> None:
        path = self.path / "recipe.toml"
        if path.exists():
            difference = _first_difference(load_recipe(str(path)).model_dump(), recipe.model_dump())
            if difference:
                raise ConfigError(
                    f"{self.path} holds a run of another recipe ({difference}); choose another folder with --run, or "
                    "remove this one"
                )
            return
        write_atomically(path, dump_recipe(recipe))
        write_atomically(self.path / "versions.json", json.dumps(versions(), indent=1) + "\n")

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines and flush them to the disk."""
        if not self.writes:
            return
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind_to(self, step: int | None) -> None:
        """Forget what was written after the checkpoint of ``step``, or everything; a resumed run writes it again."""
        if not self.writes:
            return
        if step is None:
            for path in (self.metrics, self.evals, self.transcripts, self.events, self.abandoned):
                path.unlink(missing_ok=True)
            return
        if self.metrics.exists():
            rewind(self.metrics, step)
        for path in (self.evals, self.transcripts):
            if path.exists():
                _keep_lines(path, lambda row: row["step"] < step or (row["step"] == step and row["phase"] == "during"))

    def forget_after(self, step: int) -> None:
        """Drop evaluations and transcripts of steps that were taken back; those of ``step`` itself and before stay."""
        if not self.writes:
            return
        for path in (self.evals, self.transcripts):
            if path.exists():
                _keep_lines(path, lambda row: row["step"] <= step)

    def rewind_events(self, tick: int) -> None:
        """Forget what the guard wrote after ``tick``, its count of steps made (abandoned ones included)."""
        if not self.writes:
            return
        for path in (self.events, self.abandoned):
            if path.exists():
                _keep_lines(path, lambda row: row["tick"] <= tick)

    def recorded(self, phase: str) -> Evaluation | None:
        """What the folder already knows of the evaluation ``before`` or ``after`` training."""
        rows = [row for row in read_metrics(self.evals) if row["phase"] == phase]
        return evaluation_from_rows(rows) if rows else None

    @property
    def is_finished(self) -> bool:
        """Whether the run here has ended well."""
        if not self.summary.exists():
            return False
        return bool(json.loads(self.summary.read_text(encoding="utf-8"))["status"] == "finished")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``."""
        if not self.writes:
            return
        write_atomically(self.summary, json.dumps(summary, indent=1) + "\n")

    def close(self) -> None:
        """Release the lock; a run that was refused before it began leaves no folder behind."""
        if not self.writes:
            return
        self._lock.truncate(0)
        self._lock.close()
        if self._is_new and not self.metrics.exists():
            events = [str(path.relative_to(self.path)) for path in self.path.glob("tensorboard/events.out.tfevents.*")]
            release_folder(self.path, [*events, "tensorboard", *_STARTING])


def _is_older_run(path: Path) -> bool:
    """Whether a folder without marker holds a run of an earlier version: its recipe, and what it was made with."""
    try:
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        made_with = json.loads((path / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    of_a_run = {"run", "model", "task", "train"} <= recipe.keys()
    return of_a_run and isinstance(made_with, dict) and {"heliostat", "torch"} <= made_with.keys()


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    rows = [row for row in read_metrics(path) if keep(row)]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _first_difference(stored: Mapping[Any, Any], asked: Mapping[Any, Any], where: str = "") -> str:
    """The first key on which two recipes differ, but for those that do not change the result."""
    for key in [*asked, *(key for key in stored if key not in asked)]:
        if not where and key in ("tracking", "distributed"):
            continue
        old, new = stored.get(key), asked.get(key)
        if where == "" and key == "task":
            old, new = dict(enumerate(old or ())), dict(enumerate(new or ()))
        if isinstance(old, dict) and isinstance(new, dict):
            difference = _first_difference(old, new, f"{where}{key}.")
            if difference:
                return difference
        elif old != new and f"{where}{key}" not in ("run.name", "run.root"):
            return f"{where}{key} was {_said(old)}, is now {_said(new)}"
    return ""


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def versions() -> dict[str, str]:
    """What this run was made with."""
    packages = ("heliostat", "torch", "transformers", "numpy", "tokenizers")
    return {package: version(package) for package in packages} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": str(os.cpu_count()),
        "num_threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""The run folder: one owner at a time, every file in a known place, nothing half-written.

    heliostat-run.json (the marker)  recipe.toml  versions.json  metrics.jsonl  evals.jsonl  transcripts.jsonl
    events.jsonl  abandoned.jsonl  checkpoints/  model/  report.html  summary.json  reference/ (of objectives that need
    one)  judge.json (of a judge)  teacher.json (of one on a server)  adapter/ (LoRA)
    audit.json (findings of the audit before training)
    template_day.txt (of chat templates that contain the date)

Left out: the lock itself (``lock``), the contents of a checkpoint (``checkpoints``) and of the page (``report``).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from heliostat.config import ConfigError, Recipe, RunSection, dump_recipe, is_same_place, load_recipe
from heliostat.outputs import MARKER, claim_folder, release_folder
from heliostat.storage import (
    MANIFEST,
    Damaged,
    Extent,
    append_rows,
    changed_files,
    extent_of,
    keep_rows,
    new_folder,
    publish_file,
    read_rows,
    replace_rows,
    truncate_rows,
    write_manifest,
)
from heliostat.storage.errors import naming
from heliostat.train.run_folder.lock import take_lock
from heliostat.train.run_folder.own_parts import own_parts
from heliostat.train.run_folder.preparation import check_places, keep_apart, sweep

_STARTING = (
    "checkpoints",
    "audit.json",
    "judge.json",
    "teacher.json",
    "prefixes.json",
    "trackers.json",
    "template_day.txt",
    "versions.json",
    "recipe.toml",
    "run.lock",
)
"""Files that a run writes before it can be refused."""

KEPT = frozenset(
    {
        *("recipe.toml", "versions.json", "metrics.jsonl", "evals.jsonl", "transcripts.jsonl", "events.jsonl"),
        *("abandoned.jsonl", "audit.json", "prefixes.json", "summary.json", "model", "adapter", "reference"),
        *("judge.json", "teacher.json", "template_day.txt"),
    }
)
"""Files and folders that the manifest of a finished run lists."""


def default_run_dir(section: RunSection, recipe_name: str) -> Path:
    """Return ``root/name``, or an unused dated name."""
    if section.name:
        return Path(section.root) / section.name
    dated = Path(section.root) / f"{recipe_name}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (dated.with_name(f"{dated.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([dated], others) if not path.exists())


def reserve_run_dir(section: RunSection, recipe_name: str) -> Path:
    """Return ``root/name``, or create a folder with a dated name, unique even for runs started in one second."""
    path = default_run_dir(section, recipe_name)
    return path if section.name else new_folder(path)


@dataclass(frozen=True)
class RunFolder:
    """The places and files of a run folder; without a lock, as in a run's other processes, writing does nothing.

    Attributes:
        path: the folder.
        lock: the open lock file of the process that writes (``open``).
        is_new: whether the folder was created for this run; ``close`` deletes it if the run never started.
    """

    path: Path
    lock: TextIO | None = None
    is_new: bool = False

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, reserved: bool = False) -> RunFolder:
        """Lock the folder at ``path`` for this process, creating it if it is missing, and prepare it for a session.

        Args:
            reserved: whether the folder was just created for this run (``reserve_run_dir``).

        Raises:
            RunLocked: another process holds it.
            ConfigError: it holds a run of a different recipe, or files that no run wrote.
        """
        is_new = claim_folder(path, "heliostat train", _is_older_run) or reserved
        with ExitStack() as undo:
            lock = undo.enter_context(take_lock(path))
            folder = cls(path, lock, is_new)
            folder._check_recipe(recipe)
            sweep(path, (*KEPT, MARKER, MANIFEST, "trackers.json", "report.html"))
            check_places(path)
            folder.checkpoints.mkdir(exist_ok=True)
            keep_apart(folder._logs)
            undo.pop_all()
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def writes(self) -> bool:
        """Whether this process writes here."""
        return self.lock is not None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evals(self) -> Path:
        return self.path / "evals.jsonl"

    @property
    def transcripts(self) -> Path:
        return self.path / "transcripts.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def abandoned(self) -> Path:
        return self.path / "abandoned.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def prefixes(self) -> Path:
        return self.path / "prefixes.json"

    @property
    def replies(self) -> Path:
        """The folder of a judge's replies."""
        return self.path / "judge-replies"

    @property
    def teacher_log_probs(self) -> Path:
        """The folder of what a teacher's server said."""
        return self.path / "teacher-log-probs"

    @property
    def reference(self) -> Path:
        return self.path / "reference"

    @property
    def _logs(self) -> tuple[Path, ...]:
        return self.metrics, self.evals, self.transcripts, self.events, self.abandoned

    def _check_recipe(self, recipe: Recipe) -> None:
        path = self.path / "recipe.toml"
        if not (self.path / "versions.json").exists():  # written first, so that it exists whenever the recipe does
            publish_file(self.path / "versions.json", json.dumps(versions() | own_parts(recipe), indent=1) + "\n")
        if path.exists():
            difference = _first_difference(load_recipe(str(path)).model_dump(), recipe.model_dump())
            if difference:
                raise ConfigError(
                    f"{self.path} holds a run of another recipe ({difference}); choose another folder with --run, or "
                    "remove this one"
                )
            return
        publish_file(path, dump_recipe(recipe))

    def changed_parts(self, recipe: Recipe) -> list[str]:
        """Say in a sentence each which of the recipe's parts that are not shipped differ from the run's first session.

        A part that the run has not recorded is left out.
        """
        if not self.writes:
            return []
        try:
            recorded = json.loads((self.path / "versions.json").read_bytes())
        except ValueError:
            return []
        return [
            f"{part} has changed since this run began: it was {recorded[part]}, and is {now}"
            for part, now in own_parts(recipe).items()
            if isinstance(recorded, dict) and recorded.get(part, now) != now
        ]

    def keep_day(self, today: str) -> str:
        """Return the date that the chat template shows throughout the run: the day of its first session.

        Raises:
            ConfigError: the stored date is damaged.
        """
        path = self.path / "template_day.txt"
        if not self.writes:
            return today
        if not path.exists():
            publish_file(path, f"{today}\n")
        try:
            return datetime.fromisoformat(path.read_text(encoding="utf-8").strip()).isoformat()
        except ValueError:
            raise ConfigError(
                f"{path} is damaged: it holds the date that the chat template shows in this run"
            ) from None

    def keep_judge(self, name: str, fingerprint: str) -> None:
        """Record the judge of the run's first session, and refuse another one.

        Raises:
            ConfigError: another judge gave the run's rewards so far, or the record is damaged.
        """
        path, own = self.path / "judge.json", {"judge": name, "fingerprint": fingerprint}
        if not self.writes:
            return
        if not path.exists():
            publish_file(path, json.dumps(own, indent=1) + "\n")
        try:
            stored = json.loads(path.read_bytes())
            is_same = stored["fingerprint"] == fingerprint
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is damaged: it says which judge gave this run's rewards") from None
        if not is_same:
            raise ConfigError(
                f"{name} is not the judge that gave this run's rewards so far: it has changed since the run began, and "
                "rewards of two judges cannot be compared; restore it, or choose another folder with --run"
            )

    def keep_teacher(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Record the teacher of the run's first session, and return the record that the run has.

        Raises:
            ConfigError: the record is damaged.
        """
        path = self.path / "teacher.json"
        if not self.writes:
            return dict(record)
        if not path.exists():
            publish_file(path, json.dumps(record) + "\n")
        try:
            stored = json.loads(path.read_bytes())
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or stored.keys() != record.keys():
            raise ConfigError(f"{path} is damaged: it says which teacher this run has had so far")
        return stored

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines and flush them to the disk.

        Raises:
            StorageError: the disk refused; the file is as it was.
        """
        if self.writes:
            append_rows(path, rows)

    def extents(self, step: int) -> dict[str, Extent]:
        """Return the extent of each log for a checkpoint of ``step``, without rows of later steps."""
        if not self.writes:
            return {}
        by_step = {log.name: extent_of(log, lambda row: _at(row, "step") <= step) for log in self._by_step}
        return by_step | {log.name: extent_of(log) for log in (self.events, self.abandoned)}

    @property
    def _by_step(self) -> tuple[Path, ...]:
        return self.metrics, self.evals, self.transcripts

    def rewind_to(self, step: int | None, extents: Mapping[str, Extent]) -> list[str]:
        """Remove the rows written after the checkpoint of ``step``, or all rows; a resumed run writes them again.

        Args:
            extents: the extents of the logs when that checkpoint was written.

        Returns:
            A sentence for each damaged log. Its readable rows are kept.
        """
        if not self.writes:
            return []
        (self.path / MANIFEST).unlink(missing_ok=True)  # left by the end of an earlier session
        if step is None:
            for path in self._logs:
                path.unlink(missing_ok=True)
            return []
        losses = []
        for path in self._logs:
            if path.name not in extents:  # a checkpoint of an earlier version lacks the results before training too
                self._salvage(path, step, phases=("before", "during"))
                continue
            try:
                truncate_rows(path, extents[path.name])
            except Damaged as error:
                num_lost = self._salvage(path, step)
                losses.append(f"{error}; its readable rows are kept, {num_lost} lines could not be read")
        return losses

    def _salvage(self, path: Path, step: int, phases: Sequence[str] = ("during",)) -> int:
        """Keep the readable rows of a damaged log up to ``step``; the guard's rows are cut by ``rewind_events``.

        Args:
            phases: the evaluations to keep; those before training are in the checkpoint.
        """
        if path.is_symlink():
            path.unlink()
        if path == self.evals:
            return keep_rows(path, lambda row: row.get("phase") in phases and _at(row, "step") <= step)
        if path in self._by_step:
            return keep_rows(path, lambda row: _at(row, "step") <= step)
        return keep_rows(path, lambda row: _at(row, "tick") < math.inf)

    def metrics_after(self, step: int) -> list[dict[str, Any]]:
        """Return the metrics of steps after ``step``."""
        return [row for row in read_rows(self.metrics).rows if _at(row, "step") > step]

    def forget_after(self, step: int) -> None:
        """Drop evaluations and transcripts of rolled-back steps; those of ``step`` itself and before stay."""
        if not self.writes:
            return
        for path in (self.evals, self.transcripts):
            keep_rows(path, lambda row: _at(row, "step") <= step)

    def rewind_events(self, tick: int) -> None:
        """Remove the guard's rows after ``tick``, its count of steps run, abandoned ones included."""
        if not self.writes:
            return
        for path in (self.events, self.abandoned):
            keep_rows(path, lambda row: _at(row, "tick") <= tick)

    def restore_before(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Restore the evaluation before training in ``evals.jsonl``, if it is missing or differs."""
        if not self.writes or not rows:
            return
        found = read_rows(self.evals).rows
        if [row for row in found if row.get("phase") == "before"] != list(rows):
            others = [row for row in found if row.get("phase") != "before"]
            replace_rows(self.evals, [*rows, *others])

    @property
    def is_finished(self) -> bool:
        """Whether the run in this folder has finished; a damaged summary counts as missing, and is written again."""
        try:
            summary = json.loads(self.summary.read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(summary, dict) and summary.get("status") == "finished"

    def write_audit(self, content: str) -> None:
        """Write the findings of the audit before training."""
        if self.writes:
            publish_file(self.path / "audit.json", content)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``, and write the manifest with the digests of the run's files."""
        if not self.writes:
            return
        publish_file(self.summary, json.dumps(summary, indent=1) + "\n")
        self._list_files()

    def changes(self) -> list[str]:
        """Describe each file of an ended run that has changed since, in a sentence each."""
        if self.writes and not (self.path / MANIFEST).exists():  # killed right after its summary
            self._list_files()
        return changed_files(self.path)

    def _list_files(self) -> None:
        with naming(self.path / MANIFEST):
            write_manifest(self.path, {}, KEPT)

    def close(self) -> None:
        """Release the lock, and delete the folder if the run never started."""
        if self.lock is None:
            return
        self.lock.truncate(0)
        self.lock.close()
        if self.is_new and not self.metrics.exists():
            events = [str(path.relative_to(self.path)) for path in self.path.glob("tensorboard/events.out.tfevents.*")]
            release_folder(self.path, [*events, "tensorboard", *_STARTING])


def _is_older_run(path: Path) -> bool:
    """Return whether a folder without marker holds a run of an earlier version, judged by its recipe and versions."""
    try:
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        made_with = json.loads((path / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    of_a_run = {"run", "model", "task", "train"} <= recipe.keys()
    return of_a_run and isinstance(made_with, dict) and {"heliostat", "torch"} <= made_with.keys()


def _at(row: Mapping[str, Any], key: str) -> float:
    """Return the step or tick of a row; infinite if it has none, as in rows that no run wrote."""
    value = row.get(key)
    return value if isinstance(value, int) else math.inf


INDIFFERENT = {
    "run": ("name", "root", "num_threads", "num_workers"),
    "rollout": (
        *("import_from", "num_workers"),
        *("server_url", "sync_dir", "sync", "sleep_level"),
        *("server_timeout_s", "server_retries", "server_requests"),
    ),
    "task": ("import_from", "num_workers", "timeout_s"),
    "environment": ("import_from", "num_workers", "timeout_s"),
    "judge": (
        *("import_from", "url", "timeout_s", "retries", "num_requests", "key_name"),
        *("prompt_price", "reply_price", "budget"),
    ),
    "teacher": ("url", "engine", "timeout_s", "retries", "num_requests", "key_name"),
    "objective": ("import_from",),
    "optimizer": ("import_from",),
    "train": ("try_export",),
}
"""Keys that may change when a run is continued: they say where, and by how many threads and processes, it computes."""


def _first_difference(stored: Mapping[Any, Any], asked: Mapping[Any, Any], where: str = "") -> str:
    """Describe the first key on which two recipes differ, except for keys that say where a run computes."""
    for key in [*asked, *(key for key in stored if key not in asked)]:
        if not where and key in ("tracking", "distributed", "audit"):
            continue
        old, new = stored.get(key), asked.get(key)
        if where == "" and key == "task":
            old, new = dict(enumerate(old or ())), dict(enumerate(new or ()))
        if isinstance(old, dict) and isinstance(new, dict):
            difference = _first_difference(old, new, f"{where}{key}.")
            if difference:
                return difference
        elif old != new and key not in INDIFFERENT.get(where.partition(".")[0], ()) and not is_same_place(old, new):
            return f"{where}{key} was {_said(old)}, is now {_said(new)}"
    return ""


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def versions() -> dict[str, str]:
    """Return the versions and hardware that this run uses."""
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

"""A run folder as plain records, and notes on everything in it that was missing or could not be read.

A killed run leaves files behind that end in the middle of a line, or never appear at all. Nothing here raises for
that: all readable parts are read, and each loss becomes a sentence for the page.

Left out: any computation on the numbers.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from heliostat.storage import changed_files, read_rows

T = TypeVar("T")
Phase = Literal["before", "during", "after"]

# What the page loses without each file of a run folder; a folder with none of them is not a run.
CONSEQUENCES = {
    "recipe.toml": "the settings of this run are unknown",
    "versions.json": "machine and package versions are unknown",
    "metrics.jsonl": "there are no training curves",
    "evals.jsonl": "pass@k and the interval of the change cannot be computed",
    "transcripts.jsonl": "there are no transcripts to show",
    "summary.json": "the run did not end by itself; its totals are added up from the log",
}
AUDIT = "audit.json"  # only audited runs have it: its absence is no loss
LARGEST = 1e300  # beyond this an axis cannot be computed in float64, and no metric means anything


@dataclass(frozen=True, slots=True)
class EvaluatedProblem:
    """One problem of one evaluation: how many of its samples succeeded."""

    step: int
    phase: Phase
    task: str
    problem_id: str
    num_samples: Annotated[int, Field(ge=1)]
    num_success: Annotated[int, Field(ge=0)]
    mean_reward: float | None = None
    greedy_success: bool | None = None
    num_failures: int = 0
    num_cut: int = 0
    max_length: int = 0

    def __post_init__(self) -> None:
        if self.num_success > self.num_samples:
            raise ValueError(f"{self.num_success} successes in {self.num_samples} samples")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One part of a trajectory: a turn of the model, or the environment's answer to it."""

    role: Literal["assistant", "environment"]
    text: str
    tokens: int | None = None
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """One sampled completion with its verdict, as text; a trajectory also turn by turn."""

    step: int
    phase: Phase
    task: str
    problem_id: str
    prompt: str
    completion: str
    reward: float | None = None
    success: bool = False
    stop_reason: str = ""
    answer: str | None = None
    num_tokens: int | None = None
    turns: tuple[Utterance, ...] = ()

    @property
    def written(self) -> str:
        """All that the model wrote: its turns, or the completion."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "assistant") or self.completion


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one run folder holds.

    Attributes:
        label: how the page calls the run; unique among the runs of one page.
        metrics: one mapping per step, steps ascending; ``None`` where a logged number was not finite.
        events: the guard's findings and actions, in order.
        audit: the findings of the audit of its reward before training; empty where there was none.
        notes: one sentence for each thing that was missing or unreadable.
    """

    label: str
    folder: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float | None]] = ()
    evaluations: Sequence[EvaluatedProblem] = ()
    transcripts: Sequence[Transcript] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def has_turns(self) -> bool:
        """Whether its completions are trajectories of several turns."""
        return bool(self.setting("environment.name") or self.setting("environment.tools"))

    def series(self, key: str) -> list[tuple[float, float | None]]:
        """Return ``(step, value)`` for every step that logged ``key``."""
        return [(float(line["step"] or 0), line[key]) for line in self.metrics if key in line]

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return a value of the recipe by its dotted name, such as ``objective.tau``."""
        return dig(self.recipe, *dotted.split("."), default=default)

    @property
    def last_step(self) -> int:
        """The last training step that was logged, 0 if there is none."""
        return max((int(line["step"] or 0) for line in self.metrics), default=0)

    @property
    def status(self) -> str:
        """``finished``, ``interrupted`` or ``failed`` as the run itself said, else ``unfinished``."""
        status = self.summary.get("status")
        return status if isinstance(status, str) else "unfinished"


def read_run(folder: Path, label: str = "") -> Run:
    """Read one run folder.

    Raises:
        ValueError: ``folder`` does not exist or holds none of a run's files.
    """
    _check_is_run(folder)
    notes = [f"{name} is absent: {loss}." for name, loss in CONSEQUENCES.items() if not (folder / name).is_file()]
    notes += [f"{change}; what it says may be wrong." for change in changed_files(folder, within=False)]
    return Run(
        label=label or folder.resolve().name,
        folder=folder,
        recipe=_read_document(folder / "recipe.toml", tomllib.loads, notes),
        versions=_read_document(folder / "versions.json", json.loads, notes),
        metrics=_read_metrics(folder / "metrics.jsonl", notes),
        evaluations=_read_records(folder / "evals.jsonl", EvaluatedProblem, notes),
        transcripts=_read_records(folder / "transcripts.jsonl", Transcript, notes),
        summary=_read_document(folder / "summary.json", json.loads, notes),
        events=_read_lines(folder / "events.jsonl")[0],  # absent where the guard had nothing to say
        audit=_read_document(folder / AUDIT, json.loads, notes, "what the audit of the reward found is unknown"),
        notes=tuple(notes),
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several run folders and give each a name of its own.

    Raises:
        ValueError: no folder was given, or one of them is no run.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    names = [folder.resolve().name for folder in folders]
    labels: list[str] = []
    for folder, name in zip(folders, names, strict=True):
        wanted = name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        taken = sum(label == wanted or label.startswith(f"{wanted} (") for label in labels)
        labels.append(f"{wanted} ({taken + 1})" if taken else wanted)
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def dig(mapping: Any, *path: str, default: Any = None) -> Any:
    """Return the value at a path of keys, or ``default`` where any part of the path is missing."""
    for key in path:
        if not isinstance(mapping, Mapping) or key not in mapping:
            return default
        mapping = mapping[key]
    return mapping


def number(mapping: Any, *path: str) -> float | None:
    """Return the finite number at a path of keys, or ``None``."""
    return finite(dig(mapping, *path))


def finite(value: Any) -> float | None:
    """Return ``value`` as a float if it is a usable number, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < LARGEST else None


def _check_is_run(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; a report needs the folder that heliostat train wrote")
    if any((folder / name).is_file() for name in CONSEQUENCES):
        return
    inside = sorted(path.name for path in folder.iterdir() if (path / "recipe.toml").is_file())
    hint = f"; it contains run folders: {', '.join(inside[:5])}" if inside else ""
    raise ValueError(f"{folder} is not a run folder: it holds none of {', '.join(CONSEQUENCES)}{hint}")


def _read_document(path: Path, parse: Any, notes: list[str], loss: str = "") -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # TOML, JSON and UTF-8 errors are all ValueErrors
        document = None
    if not isinstance(document, dict):
        notes.append(f"{path.name} is damaged and was left out: {loss or CONSEQUENCES[path.name]}.")
        return {}
    return document


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects of a file, and the number of lines that are none."""
    found = read_rows(path)
    return found.rows, len(found.broken)


def _read_metrics(path: Path, notes: list[str]) -> list[Mapping[str, float | None]]:
    rows, num_broken = _read_lines(path)
    by_step: dict[int, dict[str, float | None]] = {}
    for row in rows:
        step = finite(row.get("step"))
        if step is None or step != int(step):
            num_broken += 1
            continue
        # Several lines of one step belong together; where they disagree, the later one was written by a resumed run.
        numbers = {key: finite(value) for key, value in row.items() if value is None or isinstance(value, int | float)}
        by_step.setdefault(int(step), {}).update(numbers)
    _note_broken(path, num_broken, notes)
    return [by_step[step] for step in sorted(by_step)]


def _read_records(path: Path, record: type[T], notes: list[str]) -> list[T]:
    rows, num_broken = _read_lines(path)
    adapter: TypeAdapter[T] = TypeAdapter(record)
    records: list[T] = []
    for row in rows:
        try:
            records.append(adapter.validate_python(_encodable(row)))
        except (ValidationError, RecursionError):
            num_broken += 1
    _note_broken(path, num_broken, notes)
    return records


def _encodable(value: Any) -> Any:
    """Replace lone surrogates, in texts at any depth."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    return {key: _encodable(one) for key, one in value.items()} if isinstance(value, dict) else value


def _note_broken(path: Path, num_broken: int, notes: list[str]) -> None:
    if num_broken:
        lines = "one line was" if num_broken == 1 else f"{num_broken} lines were"
        notes.append(f"{path.name}: {lines} incomplete (a killed run leaves them) and left out.")

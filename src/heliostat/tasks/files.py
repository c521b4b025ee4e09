"""Tasks from the user's own data, with TRL's column conventions.

A row has a ``prompt`` (plain text, or a list of chat messages) and whatever its verifiers need; every other column is
handed to them by name. An answer column whose text contains the answer marker is read like a completion, so GSM8K's
``... #### 72`` serves as both worked solution and answer.

Left out: file formats (``rows``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.config import ConfigError, TaskSection, nearest
from heliostat.tasks.answers import find_answer, question_key
from heliostat.tasks.rows import Row, read_rows
from heliostat.tasks.settings import TaskSettings, build_verifiers, make_task, render
from heliostat.tasks.task import Task
from heliostat.types import Message, Problem

_ROLES = ("system", "user", "assistant", "developer", "tool")


@dataclass(frozen=True, kw_only=True)
class FileSettings(TaskSettings):
    """Keys of a ``file`` task.

    Attributes:
        path: a ``.jsonl`` or ``.parquet`` file, a data-set folder, or a hub id.
        heldout_path: held-out problems from elsewhere; empty: split off from ``path`` by seed.
        split: of a data set that has several.
        heldout_split: held-out problems from another split of ``path`` (or of ``heldout_path``); empty: ``split``.
        subset: of a hub data set that has several configurations.
        prompt_column: the question's column.
        answer_column: the oracle answer's column; empty: none.
        solution_column: a worked solution's column (text, or chat messages); empty: the bare answer.
    """

    path: str
    heldout_path: str = ""
    split: str = "train"
    heldout_split: str = ""
    subset: str = ""
    prompt_column: str = "prompt"
    answer_column: str = ""
    solution_column: str = ""


def load_file(section: TaskSection, settings: FileSettings, seed: int) -> Task:
    """Make a task of a data file; see ``load_task``."""
    if not settings.verifiers:
        raise ConfigError('a file task needs task.verifiers, for example [{name = "numeric"}]')
    verifiers = build_verifiers(settings.verifiers)
    name = settings.label or Path(settings.path).stem
    shuffled = _shuffled(_problems(settings.path, settings.split, settings, name), seed)
    if settings.heldout_path or settings.heldout_split:
        path = settings.heldout_path or settings.path
        elsewhere = _problems(path, settings.heldout_split or settings.split, settings, name)
        heldout = _shuffled(elsewhere, seed)[: section.num_heldout]
        _check_enough(path, len(heldout), {"num_heldout": section.num_heldout})
        taken = {_key(problem.prompt) for problem in heldout}
        train = [problem for problem in shuffled if _key(problem.prompt) not in taken][: section.num_train]
        _check_enough(settings.path, len(train), {"num_train": section.num_train})
    else:
        wanted = {"num_train": section.num_train, "num_heldout": section.num_heldout}
        _check_enough(settings.path, len(shuffled), wanted)
        heldout, rest = shuffled[: section.num_heldout], shuffled[section.num_heldout :]
        train = rest[: section.num_train]
    return make_task(settings, name, (tuple(train), tuple(heldout)), verifiers, settings.answer_after or "")


def show_file_task(name: str) -> str:
    """The keys of a ``file`` task with their defaults."""
    required = "(must be set)"
    defaults = [
        f"  {field.name} = {required if field.default is dataclasses.MISSING else repr(field.default)}"
        for field in dataclasses.fields(FileSettings)
        if field.default_factory is dataclasses.MISSING
    ]
    return "\n".join(["file", "Problems from a .jsonl or .parquet file, or a data set.", "", "settings:", *defaults])


def _problems(path: str, split: str, settings: FileSettings, task: str) -> list[Problem]:
    """Problems of a file in file order; of rows with the same prompt, the first."""
    found: dict[str, Problem] = {}
    for row in read_rows(path, split, settings.subset):
        problem = _problem(row, settings, task)
        found.setdefault(_key(problem.prompt), problem)
    if not found:
        raise ValueError(f"'{path}' holds no problems; it needs one row per problem with a '{settings.prompt_column}'")
    return list(found.values())


def _shuffled(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """In an order that depends on the prompts and the seed, not on the order of rows."""
    ordered = sorted(problems, key=lambda problem: problem.problem_id)
    random.Random(seed).shuffle(ordered)
    return ordered


def _check_enough(path: str, found: int, wanted: dict[str, int]) -> None:
    if found < sum(wanted.values()):
        raise ValueError(
            f"'{path}' has {found} different problems, but {' + '.join(wanted)} = {sum(wanted.values())}; lower "
            f"{' or '.join(f'task.{key}' for key in wanted)}"
        )


def _problem(row: Row, settings: FileSettings, task: str) -> Problem:
    marker = settings.answer_after or ""
    asked = _prompt(_cell(row, settings.prompt_column), row, settings.prompt_column)
    prompt = render(settings.template, asked, row.columns)
    answer = _text(row, settings.answer_column) if settings.answer_column else None
    if answer is not None and marker in answer:
        answer = find_answer(answer, marker)
    solution = None if answer is None else marker + answer
    if settings.solution_column:
        solution = _text(row, settings.solution_column)
        if find_answer(solution, marker) is None:
            raise ValueError(f"{row.place}: '{settings.solution_column}' does not contain answer_after = {marker!r}")
    return Problem(
        problem_id=f"{task}/{hashlib.sha256(_key(prompt).encode()).hexdigest()[:16]}",
        task=task,
        prompt=prompt,
        columns={name: value for name, value in row.columns.items() if name != settings.prompt_column},
        answer=answer,
        solution=solution,
        place=row.place,
    )


def _key(prompt: str | Sequence[Message]) -> str:
    if isinstance(prompt, str):
        return question_key(prompt)
    return "\n".join(f"{message['role']}: {question_key(message['content'])}" for message in prompt)


def _cell(row: Row, column: str) -> Any:
    if column not in row.columns:
        columns = ", ".join(row.columns)
        raise ValueError(f"{row.place}: no column '{column}'{nearest(column, row.columns)}; it has: {columns}")
    return row.columns[column]


def _prompt(value: Any, row: Row, column: str) -> str | tuple[Message, ...]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        messages = tuple(_message(message, row, column) for message in value)
        if messages[-1]["role"] != "assistant":
            return messages
        raise ValueError(f"{row.place}: '{column}' ends with an assistant's turn, so there is nothing to answer")
    raise ValueError(f"{row.place}: '{column}' must be a non-empty text or a list of chat messages, got {value!r:.80}")


def _message(message: Any, row: Row, column: str) -> Message:
    valid = isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)
    if not valid:
        raise ValueError(
            f"{row.place}: every message in '{column}' needs a 'role' ({', '.join(_ROLES)}) and a text 'content', got "
            f"{message!r:.80}"
        )
    return {"role": message["role"], "content": message["content"]}


def _text(row: Row, column: str) -> str:
    """A text or number as text; of chat messages, what the assistant says last."""
    value = _cell(row, column)
    if isinstance(value, list) and value:
        value = _message(value[-1], row, column)["content"]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"{row.place}: '{column}' must be a non-empty text or a number, got {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{row.place}: '{column}' must be a finite number, got {value}")
    return str(value)

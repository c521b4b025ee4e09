"""Tasks from the user's own data, with TRL's column conventions.

A row has a ``prompt`` (plain text, or a list of chat messages) and the columns that its verifiers need; every other
column is passed to them by name. An answer column whose text contains the answer marker is read like a completion, so
GSM8K's ``... #### 72`` serves as both worked solution and answer.

Left out: file formats (``data.rows``), reading columns (``data.columns``), and held-out splits (``data.splits``).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heliostat.config import EnvironmentSection, TaskSection, build_checked
from heliostat.tasks.answers import find_answer
from heliostat.tasks.data import columns
from heliostat.tasks.data.columns import MissingValue
from heliostat.tasks.data.in_memory import shares
from heliostat.tasks.data.rows import DataRow, read_rows
from heliostat.tasks.data.splits import (
    Asked,
    Dropped,
    digest,
    hold_out,
    problem_key,
    question_of,
    said_path,
    shuffled,
    without,
    without_copies,
)
from heliostat.tasks.settings import TaskSettings, build_verifiers, check_needs, fields_of, make_task, render
from heliostat.tasks.task import Task, WeightedVerifier
from heliostat.types import Message, Problem


@dataclass(frozen=True, kw_only=True)
class FileSettings(TaskSettings):
    """Keys of a ``file`` task.

    Columns may be named inside columns: ``reward_model.ground_truth``.

    Attributes:
        path: a ``.jsonl``, ``.json``, ``.parquet``, ``.csv`` or ``.tsv`` file, a folder of those, a saved data set,
            or a hub id.
        heldout_path: held-out problems from elsewhere; empty: split off from ``path`` by seed.
        split: of a data set that has several.
        heldout_split: held-out problems from another split of ``path`` (or of ``heldout_path``); empty: ``split``.
        subset: of a hub data set that has several configurations.
        prompt_column: the question's column.
        answer_column: the oracle answer's column; empty: none.
        solution_column: a worked solution's column (text, or chat messages); empty: the bare answer.
        answer_turn: the assistant's turn that answers, in a column of whole conversations that is named as prompt and
            as solution; the turns before it are the prompt.
        group_column: rows that are equal here are never split between training and held-out; empty: the question.
        on_missing: a row without prompt, answer or solution: ``stop`` with its place, or ``drop`` and count it.
    """

    path: str
    heldout_path: str = ""
    split: str = "train"
    heldout_split: str = ""
    subset: str = ""
    prompt_column: str = "prompt"
    answer_column: str = ""
    solution_column: str = ""
    answer_turn: Literal["first", "last"] = "first"
    group_column: str = ""
    on_missing: Literal["stop", "drop"] = "stop"


def load_file(section: TaskSection, settings: FileSettings, seed: int, environment: EnvironmentSection) -> Task:
    """Load a task from a data file; see ``load_task``."""
    verifiers = build_verifiers(settings.verifiers, settings.import_from) if settings.verifiers else ()
    return _split(section, settings, seed, verifiers, _read_all(settings))


@dataclass(frozen=True, slots=True)
class _AllRows:
    """The problems of a task before they are split.

    Attributes:
        elsewhere: held-out problems of another file or split; ``None``: they are split off from ``found``.
    """

    found: list[Asked]
    notes: list[str]
    elsewhere: list[Asked] | None


def _read_all(settings: FileSettings) -> _AllRows:
    name = _name(settings)
    found, notes = _read(settings.path, settings.split, settings, name)
    if not (settings.heldout_path or settings.heldout_split):
        return _AllRows(found, notes, None)
    path = settings.heldout_path or settings.path
    elsewhere, more = _read(path, settings.heldout_split or settings.split, settings, name)
    return _AllRows(found, notes + [note for note in more if note not in notes], elsewhere)


def _name(settings: FileSettings) -> str:
    return settings.label or Path(settings.path).stem


def _split(
    section: TaskSection,
    settings: FileSettings,
    seed: int,
    verifiers: tuple[WeightedVerifier, ...],
    rows: _AllRows,
) -> Task:
    """Build the task of ``num_train`` and ``num_heldout`` problems from all rows."""
    rest = shuffled(rows.found, seed)
    if rows.elsewhere is not None:
        heldout = shuffled(rows.elsewhere, seed)[: section.num_heldout]
        _check_enough(settings.heldout_path or settings.path, len(heldout), {"num_heldout": section.num_heldout})
        wanted = {"num_train": section.num_train}
    else:
        wanted = {"num_train": section.num_train, "num_heldout": section.num_heldout}
        _check_enough(settings.path, len(rows.found), wanted)
        heldout = hold_out(rest, section.num_heldout)
        ids = {one.problem.problem_id for one in heldout}
        rest = [one for one in rest if one.problem.problem_id not in ids]
    train = without(rest, heldout)
    asks = Dropped(said_path(settings.path), Counter({"it asks a held-out question": len(rest) - len(train)}))
    num_found = len(train) + (len(heldout) if "num_heldout" in wanted else 0)
    _check_enough(settings.path, num_found, wanted, asks)
    splits = _first(train, section.num_train), _first(heldout, section.num_heldout)
    task = make_task(settings, _name(settings), splits, verifiers, settings.answer_after or "")
    return dataclasses.replace(task, notes=(*rows.notes, *asks.notes()))


def fitting_sizes(section: TaskSection, seed: int, num_heldout: int | None = None) -> dict[str, int]:
    """Return ``num_train`` and ``num_heldout`` that use all rows of a ``file`` task.

    Args:
        num_heldout: how many to hold out. Default: all that come for it, or else a share of the rows.
    """
    return _fit(_read_all(build_checked(FileSettings, section.settings, "task")), seed, num_heldout)


def load_fitting(section: TaskSection, seed: int, asked: Mapping[str, int]) -> tuple[dict[str, int], Task]:
    """Load a ``file`` task of all its rows, which are read once.

    Args:
        asked: ``num_train`` and ``num_heldout``, as far as they are asked for.

    Returns:
        The sizes of both parts of the split, and the task.
    """
    settings = build_checked(FileSettings, section.settings, "task")
    verifiers = build_verifiers(settings.verifiers, settings.import_from)
    rows = _read_all(settings)
    sizes = _fit(rows, seed, asked.get("num_heldout")) | dict(asked)
    task = _split(section.model_copy(update=sizes), settings, seed, verifiers, rows)
    check_needs(task)
    return sizes, task


def _fit(rows: _AllRows, seed: int, num_heldout: int | None) -> dict[str, int]:
    if rows.elsewhere is not None:
        heldout = shuffled(rows.elsewhere, seed)[:num_heldout]
    else:
        num = shares(len(rows.found))["num_heldout"] if num_heldout is None else num_heldout
        heldout = hold_out(shuffled(rows.found, seed), num)
    return {"num_train": max(1, len(without(rows.found, heldout))), "num_heldout": len(heldout)}


def show_file_task(name: str) -> str:
    """Return the keys of a ``file`` task with their defaults, as text."""
    required = "(must be set)"
    defaults = [
        f"  {field.name} = {required if field.default is dataclasses.MISSING else repr(field.default)}"
        for field in dataclasses.fields(FileSettings)
        if field.default_factory is dataclasses.MISSING
    ]
    about = "Problems from a .jsonl, .json, .parquet, .csv or .tsv file, a folder of such files, or a data set."
    return "\n".join(["file", about, "", "settings:", *defaults])


def _read(path: str, split: str, settings: FileSettings, task: str) -> tuple[list[Asked], list[str]]:
    """Read the problems of a file in file order, with counts of dropped rows."""
    rows = list(read_rows(path, split, settings.subset))
    whole = bool(settings.answer_column) and columns.are_whole_floats(rows, settings.answer_column)
    dropped = Dropped(said_path(path))
    asked = []
    for row in rows:
        try:
            asked.append(_asked(row, settings, task, whole))
        except MissingValue as error:
            if settings.on_missing == "stop":
                raise ValueError(f"{error}; task.on_missing = 'drop' leaves such rows out") from None
            dropped.counts["no prompt, answer or solution"] += 1
    if not asked:
        raise ValueError(f"'{path}' holds no problems; it needs one row per problem with a '{settings.prompt_column}'")
    notes = (
        [f"{said_path(path)}: answers are whole numbers stored as 1.0, 2.0, ...; read as 1, 2, ..."] if whole else []
    )
    kept = without_copies(asked, dropped)
    if several := sum(bool(one.problem.also_right) for one in kept):
        notes.append(f"{said_path(path)}: {several} rows share their prompt and not their answer; each answer is right")
    return kept, [*notes, *dropped.notes()]


def _asked(row: DataRow, settings: FileSettings, task: str, whole: bool) -> Asked:
    problem = _problem(row, settings, task, whole)
    if settings.group_column:
        return Asked(problem, columns.text(row, settings.group_column))
    prompt = row_prompt(row, settings)[0]
    if "question" not in fields_of(settings.template):  # the question is in the other columns
        prompt = problem.prompt
    return Asked(problem, question_of(prompt))


def _problem(row: DataRow, settings: FileSettings, task: str, whole: bool) -> Problem:
    prompt, turns = row_prompt(row, settings)
    last = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    text, markup = render(settings.template, last, row.columns)
    asked = text if isinstance(prompt, str) else (*prompt[:-1], {**prompt[-1], "content": text})
    answer, solution = _answer_and_solution(row, settings, turns, whole)
    return Problem(
        problem_id=f"{task}/{digest(problem_key(asked))}",
        task=task,
        prompt=asked,
        columns={name: value for name, value in row.columns.items() if name != settings.prompt_column},
        answer=answer,
        solution=solution,
        turns=turns,
        markup=markup if isinstance(prompt, str) else (),
        place=row.place,
    )


def row_prompt(row: DataRow, settings: FileSettings) -> tuple[str | tuple[Message, ...], tuple[Message, ...]]:
    """Return the prompt of a row, and the worked conversation that follows it, if any."""
    prompt_column, solution_column = settings.prompt_column, settings.solution_column
    prompt = columns.question(row, prompt_column)
    if isinstance(prompt, str):
        return prompt, columns.turns(row, solution_column) if solution_column else ()
    if solution_column == prompt_column:
        return columns.conversation(row, prompt_column, settings.answer_turn)
    if prompt[-1]["role"] == "assistant":
        raise ValueError(
            f"{row.place}: '{prompt_column}' ends with an assistant's turn, so there is nothing to answer; to imitate "
            f"its turns, name it as the solution too: task.solution_column = '{prompt_column}'"
        )
    return prompt, columns.turns(row, solution_column) if solution_column else ()


def _answer_and_solution(
    row: DataRow, settings: FileSettings, turns: tuple[Message, ...], whole: bool
) -> tuple[str | None, str | None]:
    marker = settings.answer_after or ""
    worked = columns.first_words(turns)
    answer = None
    if settings.answer_column:
        same = turns and settings.answer_column in (settings.solution_column, settings.prompt_column)
        answer = worked if same else columns.text(row, settings.answer_column, whole)
    if answer is not None and marker in answer:
        answer = find_answer(answer, marker)
    if not settings.solution_column:
        return answer, None if answer is None else marker + answer
    solution = worked if turns else columns.text(row, settings.solution_column)
    if find_answer(solution, marker) is None:
        raise ValueError(f"{row.place}: '{settings.solution_column}' does not contain answer_after = {marker!r}")
    return answer, solution


def _first(asked: list[Asked], num: int) -> tuple[Problem, ...]:
    return tuple(one.problem for one in asked[:num])


def _check_enough(path: str, found: int, wanted: dict[str, int], asks: Dropped | None = None) -> None:
    if found < sum(wanted.values()):
        left = (
            "" if asks is None or not asks.counts.total() else f" ({asks.counts.total()} more ask held-out questions)"
        )
        raise ValueError(
            f"'{path}' has {found} different problems, but {' + '.join(wanted)} = {sum(wanted.values())}; lower "
            f"{' or '.join(f'task.{key}' for key in wanted)}{left}"
        )

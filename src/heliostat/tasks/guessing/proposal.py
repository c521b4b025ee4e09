"""Propose the settings of a ``file`` task for a source of rows, with the evidence for each.

    source -> rows -> columns -> answer marker -> sizes of the split -> verifier -> Proposal

Left out: settings of model and training, and the text of a recipe (``cli``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.config import ConfigError, TaskSection, build_checked
from heliostat.tasks.data import columns as cells
from heliostat.tasks.data.rows import DataRow, read_rows
from heliostat.tasks.guessing.columns import Columns, find_marker, guess_columns, is_label_of_row
from heliostat.tasks.guessing.verifiers import (
    AnswerKind,
    Table,
    VerifierTrial,
    candidates,
    choose,
    has_math,
    kind_of,
    try_verifiers,
)
from heliostat.tasks.loading import load_task
from heliostat.tasks.settings import build_verifiers, fields_of
from heliostat.tasks.sources.data_files import FileSettings, load_fitting
from heliostat.tasks.task import Task
from heliostat.types import Problem

_PLACEHOLDER: Table = {"name": "exact"}  # lets the problems load before a verifier is chosen


@dataclass(frozen=True, slots=True)
class Wishes:
    """Settings that are known and not guessed.

    Attributes:
        prompt: the prompt's column; empty: guess.
        answer: the answer's column; empty: guess.
        verifier: its name; empty: guess.
        settings: further keys of the task section, by name.
    """

    prompt: str = ""
    answer: str = ""
    verifier: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed task and the reasons for it.

    Attributes:
        settings: keys of the task section, without ``verifiers`` where none fits.
        num_rows: rows of the source.
        others: columns that nothing reads yet.
        task: the problems; its verifiers are placeholders.
        kind: the kind of most answers; ``None``: there are no answers, or the verifier was named.
        trials: results of every verifier that was tried.
        verifier: the chosen entry of ``task.verifiers``; ``None``: no built-in verifier fits.
        read_with: settings that the rows of ``task`` were read with.
        missing: the sentence on a better verifier that is not installed; empty: none.
    """

    settings: dict[str, Any]
    num_rows: int
    columns: Columns
    others: tuple[str, ...]
    task: Task
    kind: AnswerKind | None
    trials: tuple[VerifierTrial, ...]
    verifier: Table | None
    read_with: Mapping[str, Any]
    missing: str = ""

    @property
    def chosen(self) -> VerifierTrial | None:
        """The trial of the chosen verifier, if it was tried."""
        return next((trial for trial in self.trials if trial.table == self.verifier), None)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of both parts of the split."""
        return self.task.train + self.task.heldout


def propose(source: str, wishes: Wishes, seed: int = 0) -> Proposal:
    """Read the rows of ``source`` and propose a task.

    Raises:
        ConfigError: the source is missing or of an unknown kind, or its columns cannot be told apart.
        ValueError: a row is broken, with its place, or there are too few different problems.
    """
    asked = dict(wishes.settings)
    rows = list(read_rows(source, asked.get("split", "train"), asked.get("subset", "")))
    if not rows:
        raise ValueError(f"'{source}' holds no rows; it needs one per problem, like {_EXAMPLE}")
    if len(rows) < 2:
        raise ValueError(f"'{source}' holds one row; it needs at least two problems, to hold one of them out")
    found = guess_columns(rows, wishes.prompt, wishes.answer)
    if not found.answer and ":" not in wishes.verifier:
        raise ConfigError(
            f"'{source}' has no column of right answers beside '{found.prompt}' (it has {', '.join(rows[0].columns)}); "
            "name one with --answer-column, or judge without one by --verifier my_module:my_function"
        )
    settings = _settings(rows, found) | asked
    settings, read_with, task = _loaded(source, settings, found, seed)
    if wishes.verifier:
        kind, tables = None, [] if ":" in wishes.verifier else [_named(wishes.verifier)]
    else:
        answers = [str(problem.answer) for problem in task.train + task.heldout]
        kind, tables = kind_of(answers), candidates(answers)
    trials = tuple(try_verifiers(task, tables, seed))
    chosen = _chosen(wishes.verifier, kind, trials)
    if chosen == {"name": "math"} and "solution_column" not in settings and _are_boxed(rows, found.solution):
        settings["solution_column"] = found.solution
    return Proposal(
        settings=settings,
        num_rows=len(rows),
        columns=found,
        others=_others(rows[0], found, str(asked.get("template", ""))),
        task=task,
        kind=kind,
        trials=trials,
        verifier=chosen,
        read_with=read_with,
        missing=_missing(kind),
    )


_EXAMPLE = '{"prompt": "2 + 3 =", "answer": "5"}'


def _others(row: DataRow, found: Columns, template: str) -> tuple[str, ...]:
    used = {name.partition(".")[0] for name in fields_of(template)} | found.used
    return tuple(name for name in row.columns if name not in used and not is_label_of_row(name))


def _section(source: str, settings: Mapping[str, Any]) -> TaskSection:
    return TaskSection.model_validate({"name": "file", "path": source, **settings})


def _needs(found: Columns) -> dict[str, Any]:
    """Return the placeholder's answers where the data has none: the prompts themselves."""
    return {} if found.answer else {"answer_column": found.prompt}


def _loaded(
    source: str, settings: dict[str, Any], found: Columns, seed: int
) -> tuple[dict[str, Any], dict[str, Any], Task]:
    """Load the task with all rows, as far as the sizes of its parts are not asked for.

    Returns:
        The settings with both sizes, those that the rows were read with, and the task.
    """
    sizes = ("num_train", "num_heldout")
    asked = {key: settings[key] for key in sizes if key in settings}
    bare = {key: value for key, value in settings.items() if key not in sizes}
    build_checked(FileSettings, {"path": source, **bare}, "task")  # refuse unknown keys before the rows are read again
    read_with = bare | _needs(found)
    fitting, task = load_fitting(_section(source, read_with | {"verifiers": [_PLACEHOLDER]}), seed, asked)
    return settings | fitting, read_with, task


def loaded_for(proposal: Proposal, section: TaskSection, seed: int = 0) -> Task:
    """Return the task of a recipe that was written from a proposal.

    The problems of the proposal are used again where the recipe reads the rows by the same settings; otherwise they
    are read again.
    """
    settings = build_checked(FileSettings, section.settings, "task")
    read = build_checked(FileSettings, {"path": settings.path, **proposal.read_with}, "task")
    same = dataclasses.replace(settings, verifiers=read.verifiers, import_from=read.import_from) == read
    if not same or (section.num_train, section.num_heldout) != (len(proposal.task.train), len(proposal.task.heldout)):
        return load_task(section, seed)
    return dataclasses.replace(proposal.task, verifiers=build_verifiers(settings.verifiers, settings.import_from))


def _settings(rows: Sequence[DataRow], found: Columns) -> dict[str, Any]:
    """Return the keys of the columns, of the marker before answers, and of rows without a prompt or an answer."""
    settings: dict[str, Any] = {"prompt_column": found.prompt}
    if found.answer:
        settings["answer_column"] = found.answer
    if found.is_chat:
        settings |= {"solution_column": found.solution, "answer_turn": "last"}
    read = [name for name in (found.prompt, found.answer) if name]
    if any(_is_blank(row, name) for row in rows for name in read):
        settings["on_missing"] = "drop"
    answers = _answers(rows, found)
    marker = find_marker(answers)
    if marker:
        return settings | {"solution_column": found.answer, "answer_after": marker}
    filled = bool(found.solution) and all(cells.has_column(row.columns, found.solution) for row in rows)
    if filled and not found.is_chat and not any(_is_blank(row, found.solution) for row in rows):
        solutions = [str(cells.cell(row, found.solution)) for row in rows]
        marker = find_marker(solutions)
        if marker and all(
            solution.rpartition(marker)[2].strip() == str(cells.cell(row, found.answer)).strip()
            for row, solution in zip(rows, solutions, strict=True)
        ):
            return settings | {"solution_column": found.solution, "answer_after": marker}
    return settings


def _answers(rows: Sequence[DataRow], found: Columns) -> list[str]:
    if not found.answer:
        return []
    if found.is_chat and found.answer == found.prompt:
        worked = [cells.conversation(row, found.prompt, "last")[1] for row in rows if not _is_blank(row, found.prompt)]
        return [cells.first_words(turns) for turns in worked]
    return [str(cells.cell(row, found.answer)) for row in rows if not _is_blank(row, found.answer)]


def _are_boxed(rows: Sequence[DataRow], solution: str) -> bool:
    r"""Return whether every row has a worked solution that ends in ``\boxed{…}``, as ``math`` reads it."""
    filled = bool(solution) and all(cells.has_column(row.columns, solution) for row in rows)
    return filled and all(r"\boxed" in str(cells.cell(row, solution)) for row in rows)


def _is_blank(row: DataRow, name: str) -> bool:
    if not cells.has_column(row.columns, name):
        return False  # refused when the task loads, with its place
    value = cells.cell(row, name)
    return value in (None, "", []) or (isinstance(value, str) and not value.strip())


def _named(verifier: str) -> Table:
    return {"name": verifier}


def _chosen(asked: str, kind: AnswerKind | None, trials: Sequence[VerifierTrial]) -> Table | None:
    if asked:
        return _named(asked)
    assert kind is not None
    best = choose(trials, kind)
    if kind is AnswerKind.FREE_TEXT and best.table["name"] == "exact":
        return None
    return best.table


def _missing(kind: AnswerKind | None) -> str:
    if kind is not AnswerKind.MATHEMATICS or has_math():
        return ""
    return (
        "these answers are LaTeX or formulas, which the verifier 'math' compares by value; it needs the package "
        "math-verify: pip install 'heliostat[tasks]', then run this command again with --force"
    )

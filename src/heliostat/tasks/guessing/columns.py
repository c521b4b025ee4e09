"""Guess the columns of a task from a few rows: the prompt, the answer, and a worked solution.

Names decide first, then content. A guess is never silent: each one carries its reason.

Left out: judging answers (``verifiers``), and reading the columns of a task (``sources.data_files``).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliostat.config import ConfigError
from heliostat.tasks.data.columns import cell, has_column
from heliostat.tasks.data.rows import DataRow

_CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
_PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "task", "text", "sentence", "source")
_ANSWERS = (
    *("answer", "final_answer", "ground_truth", "expected_answer", "correct_answer", "gold", "target", "label"),
    *("expected", "solution", "output", "response", "completion", "result", "reply", "category", "class", "sentiment"),
)
_SOLUTIONS = ("solution", "worked_solution", "generated_solution", "rationale", "reasoning", "explanation", "cot")
_NOT_ANSWERS = ("id", "idx", "index", "uuid", "uid", "url", "split", "source", "date", "time", "timestamp", "level")
_MARKERS = ("#### ", "####", "The final answer is ", "The answer is ", "Final answer: ", "Answer: ")
_NUM_LOOKED_AT = 200
_SHORT = 60  # characters; longer texts are not answers but solutions


@dataclass(frozen=True, slots=True)
class Columns:
    """The guessed columns of a task, each with the reason for it.

    Attributes:
        answer: empty: no column holds right answers.
        solution: worked solutions; empty: none.
        is_chat: whether the prompt's column holds whole conversations, whose last assistant turn is the answer.
    """

    prompt: str
    answer: str
    solution: str
    is_chat: bool
    why_prompt: str
    why_answer: str

    @property
    def used(self) -> frozenset[str]:
        """The names of the columns that the task reads, those around nested ones included."""
        return frozenset(name.partition(".")[0] for name in (self.prompt, self.answer, self.solution))


def guess_columns(rows: Sequence[DataRow], prompt: str = "", answer: str = "") -> Columns:
    """Guess the columns of prompts, answers and worked solutions.

    Args:
        rows: some rows of the data; the first 200 count.
        prompt: the prompt's column, if it is known.
        answer: the answer's column, if it is known.

    Raises:
        ConfigError: a known column is missing, or nothing tells the columns apart; names them and the way out.
    """
    rows = rows[:_NUM_LOOKED_AT]
    names = _names(rows)
    for name in filter(None, (prompt, answer)):
        cell(rows[0], name) if not any(has_column(row.columns, name) for row in rows) else None
    if not prompt:
        prompt, why_prompt = _prompt(rows, [name for name in names if name != answer])
    else:
        why_prompt = "as asked"
    if holds_conversations(rows, prompt):
        return Columns(prompt, answer or prompt, prompt, True, why_prompt, "as asked" if answer else _LAST_TURN)
    why_answer = "as asked"
    if not answer:
        answer, why_answer = _answer(rows, [name for name in names if name != prompt])
    solution = _by_name(rows, [name for name in names if name not in (prompt, answer)], _SOLUTIONS)
    return Columns(prompt, answer, solution, False, why_prompt, why_answer)


_LAST_TURN = "the last turn of the assistant"


def holds_conversations(rows: Iterable[DataRow], column: str) -> bool:
    """Return whether a column holds chats in which an assistant has spoken."""
    values = [cell(row, column) for row in rows if has_column(row.columns, column)]
    chats = [value for value in values if isinstance(value, list) and value]
    return bool(chats) and all(
        any(isinstance(turn, Mapping) and {turn.get("role"), turn.get("from")} & _ASSISTANTS for turn in chat)
        for chat in chats
    )


_ASSISTANTS = {"assistant", "gpt", "model"}


def is_label_of_row(name: str) -> bool:
    """Return whether a column of this name tells rows apart, like an id or a date, and says nothing of a problem."""
    return _last_word(name) in _NOT_ANSWERS


def find_marker(texts: Sequence[str]) -> str:
    """Return the marker that stands before the final answer in all of these texts, after some working; else empty."""
    for marker in _MARKERS:
        parts = [text.rpartition(marker) for text in texts]
        if parts and all(found and right.strip() for _, found, right in parts):
            return marker if any(working.strip() for working, _, _ in parts) else ""
    return ""


def _names(rows: Sequence[DataRow]) -> list[str]:
    """Return the names of all columns in order, with the paths of those inside others."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.columns.items():
            inner = [f"{name}.{key}" for key in value] if isinstance(value, Mapping) else [name]
            names |= dict.fromkeys(inner)
    return list(names)


def _prompt(rows: Sequence[DataRow], names: Sequence[str]) -> tuple[str, str]:
    if found := _by_name(rows, names, (*_PROMPTS[:3], *_CHATS, *_PROMPTS[3:])):
        return found, "by its name"
    lengths = {name: _median_length(rows, name) for name in names if _texts(rows, name)}
    if not lengths:
        raise ConfigError(
            f"no column of {_place(rows)} holds texts; there are: {', '.join(names) or 'none'}; every row needs a "
            'prompt and an answer, like {"prompt": "2 + 3 =", "answer": "5"}'
        )
    return max(lengths, key=lambda name: lengths[name]), "by its content, the longest texts"


def _answer(rows: Sequence[DataRow], names: Sequence[str]) -> tuple[str, str]:
    """Return the answer's column and the reason for it; empty where there is no other column."""
    if found := _by_name(rows, names, _ANSWERS):
        return found, "by its name"
    others = [name for name in names if not is_label_of_row(name) and _scalars(rows, name)]
    if not others:
        return "", "no column is left for it"
    if len(others) == 1:
        return others[0], "the only column left"
    short = [name for name in others if _median_length(rows, name) <= _SHORT and len(set(_scalars(rows, name))) > 1]
    if len(short) == 1:
        return short[0], "by its content, the only short values"
    raise ConfigError(
        f"cannot tell which column of {_place(rows)} holds the right answers: {', '.join(others)}; name it with "
        "--answer-column"
    )


def _by_name(rows: Sequence[DataRow], names: Sequence[str], known: Sequence[str]) -> str:
    """Return the first column of a known name, the last part of a path included, that is filled somewhere."""
    for word in known:
        for name in names:
            if _last_word(name) == word and _is_filled(rows, name):
                return name
    return ""


def _last_word(name: str) -> str:
    return name.rpartition(".")[2].strip().lower().replace(" ", "_").replace("-", "_")


def _values(rows: Iterable[DataRow], name: str) -> list[Any]:
    return [cell(row, name) for row in rows if has_column(row.columns, name)]


def _is_filled(rows: Iterable[DataRow], name: str) -> bool:
    return any(value not in (None, "", []) and str(value).strip() for value in _values(rows, name))


def _texts(rows: Iterable[DataRow], name: str) -> list[str]:
    return [value for value in _values(rows, name) if isinstance(value, str) and value.strip()]


def _scalars(rows: Iterable[DataRow], name: str) -> list[str]:
    return [str(value) for value in _values(rows, name) if isinstance(value, str | int | float) and str(value).strip()]


def _median_length(rows: Iterable[DataRow], name: str) -> float:
    return statistics.median(map(len, _scalars(rows, name)))


def _place(rows: Sequence[DataRow]) -> str:
    return rows[0].place.partition(",")[0]

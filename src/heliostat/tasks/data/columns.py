"""Read the columns of a row: a value by name or path, a question, an answer, the turns of a chat.

``reward_model.ground_truth`` names a column inside a column. Values of numpy and torch are read as plain Python, and
NaN as missing, like ``None``.

Left out: the columns of a task (``sources.data_files``), and reading rows (``rows``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

from heliostat.config import nearest
from heliostat.tasks.data.bounded_reader import DataRow
from heliostat.types import Message

ROLES = ("system", "user", "assistant", "developer", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


class MissingValue(ValueError):
    """A cell is empty, ``None`` or NaN."""


def plain_value(value: Any) -> Any:
    """Convert a value to plain Python: numbers and lists for numpy and torch, ``None`` for NaN and other blanks."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' blanks, without importing pandas
        return None
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy's and torch's arrays, scalars and tensors
        return plain_value(value.tolist())
    return value


def plain_row(columns: Mapping[Any, Any]) -> dict[str, Any]:
    """Apply ``plain_value`` to every column."""
    return {str(name): plain_value(value) for name, value in columns.items()}


def has_column(columns: Mapping[str, Any], name: str) -> bool:
    """Return whether these columns include one of this name or path."""
    return _find(columns, name) is not None


def cell(row: DataRow, name: str) -> Any:
    """Return the value of a column, or the value at a path like ``extra_info.answer``.

    Raises:
        ValueError: there is none; names the row, the nearest column, and those that there are.
    """
    found = _find(row.columns, name)
    if found is None:
        near = nearest(name, [*row.columns, *_paths(row.columns)])
        raise ValueError(f"{row.place}: no column '{name}'{near}; it has: {', '.join(row.columns)}")
    return found[0]


def _find(columns: Mapping[str, Any], name: str) -> tuple[Any] | None:
    if name in columns:
        return (columns[name],)
    head, dot, rest = name.partition(".")
    inner = columns.get(head) if dot else None
    return _find(inner, rest) if isinstance(inner, Mapping) else None


def _paths(columns: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of nested columns, one level down."""
    for name, value in columns.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in value)


def question(row: DataRow, column: str) -> str | tuple[Message, ...]:
    """Return a prompt: text, or the messages of a chat.

    Raises:
        MissingValue: it is empty.
        ValueError: it is neither text nor messages.
    """
    value = _decoded(cell(row, column))
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        return messages(row, column)
    kind = MissingValue if value is None or value == [] or isinstance(value, str) else ValueError
    raise kind(
        f"{row.place}: '{column}' must be a non-empty text or a list of chat messages, got {value!r:.80}"
        + _inside(column, value)
    )


def messages(row: DataRow, column: str) -> tuple[Message, ...]:
    """Return the messages of a chat in the form that templates read.

    Raises:
        ValueError: one has no known role, or no text.
    """
    value = cell(row, column)
    assert isinstance(value, list)
    return tuple(_message(item, row, column) for item in value)


def text(row: DataRow, column: str, whole: bool = False) -> str:
    """Return a text or number as text; for chat messages, the last assistant message.

    Args:
        whole: whether floats stand for whole numbers: ``72.0`` for ``72``.

    Raises:
        MissingValue: it is empty.
        ValueError: it is neither.
    """
    value = _decoded(cell(row, column))
    if isinstance(value, list) and value:
        value = _message(value[-1], row, column)["content"]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{row.place}: '{column}' must be a finite number, got {value}")
    value = int(value) if whole and isinstance(value, float) else value
    known = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
    if known and str(value).strip():
        return str(value)
    kind = MissingValue if value is None or value == [] or isinstance(value, str) else ValueError
    raise kind(
        f"{row.place}: '{column}' must be a non-empty text or a number, got {value!r:.80}" + _inside(column, value)
    )


def are_whole_floats(rows: Iterable[DataRow], column: str) -> bool:
    """Return whether a column holds whole numbers of which some are floats, because a missing value converted them."""
    found = [_find(row.columns, column) for row in rows]
    values = [value[0] for value in found if value is not None and value[0] is not None]
    whole = all(isinstance(value, int) or (isinstance(value, float) and value.is_integer()) for value in values)
    return whole and any(isinstance(value, float) for value in values)


def turns(row: DataRow, column: str) -> tuple[Message, ...]:
    """Return a worked conversation up to its last assistant turn; empty if the column holds no chat.

    Raises:
        ValueError: no assistant speaks in it.
    """
    value = cell(row, column)
    if not isinstance(value, list) or not value:
        return ()
    return _to_last_answer(messages(row, column), row, column)


def conversation(
    row: DataRow, column: str, before: Literal["first", "last"] = "first"
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Split a whole conversation before its first or its last assistant turn; what follows the last one is dropped.

    Raises:
        ValueError: nobody asks, or nobody answers.
    """
    said = _to_last_answer(messages(row, column), row, column)
    answers = [number for number, message in enumerate(said) if message["role"] == "assistant"]
    start = answers[0] if before == "first" else answers[-1]
    if not any(message["role"] == "user" for message in said[:start]):
        raise ValueError(f"{row.place}: '{column}' begins with an assistant's turn, before anything is asked")
    return said[:start], said[start:]


def _to_last_answer(said: tuple[Message, ...], row: DataRow, column: str) -> tuple[Message, ...]:
    answers = [number for number, message in enumerate(said) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{row.place}: '{column}' has no assistant's turn to learn from")
    return said[: answers[-1] + 1]


def first_words(worked: Iterable[Message]) -> str:
    """Return the first assistant message of a worked conversation."""
    return next((str(message["content"]) for message in worked if message["role"] == "assistant"), "")


def _inside(column: str, value: Any) -> str:
    """Return a hint on how to name a nested column, if the column has any."""
    if not isinstance(value, Mapping) or not value:
        return ""
    return f"; name one of the columns in it: {', '.join(f'{column}.{name}' for name in value)}"


def _decoded(value: Any) -> Any:
    """Decode bytes that hold text, as some programs write it to Parquet."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _message(item: Any, row: DataRow, column: str) -> Message:
    turn = _from_sharegpt(item) if isinstance(item, Mapping) else {}
    if "content" in turn:
        turn["content"] = _joined_parts(turn["content"])
    if turn.get("content") is None and turn.get("tool_calls"):
        turn["content"] = ""  # a turn that only calls tools says nothing
    if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        several = "; of several right answers, each needs a row of its own" if isinstance(item, str | int) else ""
        raise ValueError(
            f"{row.place}: every message in '{column}' needs a 'role' ({', '.join(ROLES)}) and a text 'content', got "
            f"{item!r:.80}{several}"
        )
    return {name: value for name, value in turn.items() if value is not None}  # Parquet adds missing keys


def _from_sharegpt(item: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a message with ``from`` and ``value`` to ``role`` and ``content``."""
    turn = dict(item)
    if "role" not in turn and {"from", "value"} <= turn.keys():
        said = turn.pop("from")
        turn = {"role": _SHAREGPT_ROLES.get(said, said), "content": turn.pop("value"), **turn}
    return turn


def _joined_parts(content: Any) -> Any:
    """Join the parts of a content if all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else content

"""Read rollout dumps of other programs by their column names.

    trl         completions/*.parquet of ``log_completions``   step, prompt, completion, a column per reward, advantage
    verl        <step>.jsonl of ``trainer.rollout_data_dir``   input, output, gts, score, step
    messages    chat data with the answer as last message      messages (or conversations)

Left out: rows of our own (``columns``), which carry ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliostat.traces.columns import REQUIRED

_CLAIMS = ("reward", "score", "rewards")


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row with text instead of ids.

    Attributes:
        question: the prompt as the file has it, rendered or not; empty where ``problem_id`` says which problem.
        reward: the file's reward; ``None`` if it has none.
    """

    question: str
    completion: str
    problem_id: str = ""
    reward: float | None = None
    run: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class Dialect:
    """The column names of one program; the first one present counts."""

    prompt: tuple[str, ...]
    completion: tuple[str, ...]


DIALECTS: dict[str, Dialect] = {
    "verl": Dialect(("input",), ("output",)),
    "trl": Dialect(("prompt", "question", "problem"), ("completion", "response", "solution", "answer_text")),
    "messages": Dialect(("messages", "conversations"), ("messages", "conversations")),
}


def is_own(row: Mapping[str, Any]) -> bool:
    """Return whether a row has our own columns."""
    return all(name in row for name in REQUIRED)


def read_text_row(row: Mapping[str, Any]) -> TextRow:
    """Read a row of the first program whose columns match.

    Raises:
        ValueError: no program's columns are there, or a value has the wrong type; names the column.
    """
    for dialect in DIALECTS.values():
        prompt = next((name for name in dialect.prompt if name in row), None)
        completion = next((name for name in dialect.completion if name in row), None)
        if prompt is not None and completion is not None:
            return TextRow(
                question=_said(row[prompt], prompt, before_last=prompt == completion),
                completion=_said(row[completion], completion),
                problem_id=_text(row.get("problem_id") or "", "problem_id"),
                reward=_reward(row),
                run=_text(row.get("run") or "", "run"),
                step=_step(row.get("step") or 0),
            )
    raise ValueError(f"no columns of a known kind ({', '.join(('heliostat', *DIALECTS))}); it has: {', '.join(row)}")


def _said(value: Any, name: str, before_last: bool = False) -> str:
    """Return a text, or the last of chat messages (the one before it, if the last is the answer)."""
    if isinstance(value, list | tuple) and len(value) > before_last:
        message = value[-2 if before_last else -1]
        if isinstance(message, Mapping):
            value = message.get("content", message.get("value"))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column '{name}' must be a text or a list of chat messages, got {value!r:.60}")
    return value


def _reward(row: Mapping[str, Any]) -> float | None:
    name = next((name for name in _CLAIMS if row.get(name) is not None), None)
    if name is None:
        return None
    value = row[name]
    if type(value) not in (int, float) or value != value or abs(value) == float("inf"):
        raise ValueError(f"column '{name}' must be a finite number, got {value!r:.60}")
    return float(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"column '{name}' must be a text, got {value!r:.60}")
    return value


def _step(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"column 'step' must be a whole number from 0 to 2^63 - 1, got {value!r:.60}")
    return value

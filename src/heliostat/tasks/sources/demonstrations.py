"""Build the task of ``heliostat sft --data`` from worked solutions or conversations, under a recipe's settings.

Columns are the recipe's where the data has them, and else TRL's: ``prompt`` and ``completion``, or ``messages``.

Left out: reading the rows (``data_files``), and learning from them.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from heliostat.config import ConfigError, TaskSection
from heliostat.tasks.data.columns import has_column
from heliostat.tasks.data.in_memory import SOURCE_KEYS
from heliostat.tasks.data.rows import read_rows

_CONVERSATIONS = ("messages", "conversations")


def demonstrations_of(section: TaskSection, path: str) -> dict[str, Any]:
    """Return the table of a file task with the demonstrations of ``path``.

    Args:
        section: the recipe's task; its template, columns and verifiers count, its own data does not.

    Raises:
        ConfigError: it is not clear which columns hold question and solution.
    """
    own = section.settings
    kept = {key: value for key, value in own.items() if key not in SOURCE_KEYS} if section.name == "file" else {}
    kept |= {key: own[key] for key in ("template", "answer_after") if key in own}
    if section.name == "file":
        kept |= {key: own[key] for key in ("split", "subset") if key in own}
    first = next(islice(read_rows(path, kept.get("split", "train"), kept.get("subset", "")), 1), None)
    columns = {} if first is None else first.columns
    kept = {key: value for key, value in kept.items() if not key.endswith("_column") or has_column(columns, value)}
    prompt, solution = _asked_and_worked(kept, columns)
    if columns and not (has_column(columns, prompt) and has_column(columns, solution)):
        raise ConfigError(
            f"'{path}' has the columns {', '.join(columns)}; say which one asks and which one is to be learned: "
            "task.prompt_column and task.solution_column (of plain text without a question there is nothing to learn)"
        )
    kept |= {"prompt_column": prompt, "solution_column": solution}
    if "answer_column" not in kept:
        kept |= {"answer_column": solution, "verifiers": [{"name": "exact"}]}
    sizes = {"num_train": section.num_train, "num_heldout": section.num_heldout}
    return {"verifiers": [{"name": "exact"}]} | kept | sizes | {"name": "file", "path": path}


def _asked_and_worked(kept: dict[str, Any], columns: dict[str, Any]) -> tuple[str, str]:
    """Return the names of the question and solution columns; the same name for a column of whole conversations."""
    prompt = kept.get("prompt_column", "prompt")
    whole = [name for name in _CONVERSATIONS if name in columns]
    if "prompt_column" not in kept and "prompt" not in columns and whole:
        return whole[0], whole[0]
    return prompt, kept.get("solution_column", "completion")

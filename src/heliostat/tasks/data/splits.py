"""Deduplicate rows, group them by question, and hold some of the questions out.

Two rows are the same if every column is; the second is dropped. Rows with the same prompt and different answers are all
kept, and each answer is right for each of them. Rows ask the same question if their user messages are equal, regardless
of system prompt, template or form (text or chat); such rows are never on both sides of a split.

Left out: reading rows (``rows``), and the meaning of their columns (``columns``, ``sources.data_files``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliostat.tasks.answers import question_key
from heliostat.tasks.data.in_memory import PREFIX
from heliostat.types import Message, Problem

Prompt = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem with the key of the question that it asks."""

    problem: Problem
    question: str


def question_of(prompt: Prompt) -> str:
    """Return the key of a question: the prompt without system messages and surrounding whitespace.

    **Limits** Line breaks and indentation inside are part of a question: they may be all that two grids differ in.
    """
    if isinstance(prompt, str):
        return _trimmed(prompt)
    said = [(message["role"], _trimmed(message["content"])) for message in prompt]
    said = [(role, words) for role, words in said if role not in ("system", "developer")]
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{role}: {words}" for role, words in said)


def problem_key(prompt: Prompt) -> str:
    """Return the text that a problem's id is derived from: the whole prompt, without surrounding whitespace."""
    if isinstance(prompt, str):
        return question_key(prompt)
    return "\n".join(f"{message['role']}: {question_key(message['content'])}" for message in prompt)


def digest(text: str) -> str:
    """Return sixteen hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Dropped:
    """Counts of dropped rows by reason; ``name`` is that of the data."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Return one sentence for each reason."""
        counts = {why: num for why, num in self.counts.items() if num}
        return [f"{self.name}: {num} {'row' if num == 1 else 'rows'} left out: {why}" for why, num in counts.items()]


def said_path(path: str) -> str:
    """Return the name of a data file or of in-memory rows for messages."""
    return "data" if path.startswith(PREFIX) else Path(path).name


def without_copies(asked: Iterable[Asked], dropped: Dropped) -> list[Asked]:
    """Drop duplicate rows, make the ids of the others unique, and share the answers of equal prompts."""
    unlike: dict[str, Asked] = {}
    for one in asked:
        content = _content(one.problem)
        if content in unlike:
            dropped.counts["the same as another row"] += 1
        unlike.setdefault(content, one)
    shared = Counter(one.problem.problem_id for one in unlike.values())
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for one in unlike.values():
        if one.problem.answer is not None:
            answers[_stripped(one.problem.prompt)].add(one.problem.answer)
    kept = []
    for content, one in unlike.items():
        problem = one.problem
        others = answers[_stripped(problem.prompt)] - {problem.answer}
        if shared[problem.problem_id] > 1:
            problem = dataclasses.replace(problem, problem_id=f"{problem.problem_id}-{digest(content)[:8]}")
        if others:
            problem = dataclasses.replace(problem, also_right=tuple(sorted(others)))
        kept.append(Asked(problem, one.question))
    return kept


def shuffled(asked: Iterable[Asked], seed: int) -> list[Asked]:
    """Shuffle in an order that depends on the prompts and the seed, not on the order of rows."""
    ordered = sorted(asked, key=lambda one: one.problem.problem_id)
    random.Random(seed).shuffle(ordered)
    return ordered


def hold_out(asked: Sequence[Asked], num: int) -> list[Asked]:
    """Take ``num`` rows, whole questions at a time, in order of first occurrence.

    **Limits** Where all questions are different, these are the first ``num`` rows. A question is cut, and the rest of
    its rows are good for neither side, only if no whole one fits any more.
    """
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.question, []).append(one)
    taken: list[Asked] = []
    for question, group in list(groups.items()):
        if len(taken) + len(group) <= num:
            taken += groups.pop(question)
    for group in sorted(groups.values(), key=len):
        taken += group[: num - len(taken)]
    return taken


def without(asked: Iterable[Asked], heldout: Iterable[Asked]) -> list[Asked]:
    """Return the problems whose question is not held out."""
    taken = {one.question for one in heldout}
    return [one for one in asked if one.question not in taken]


def _trimmed(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _content(problem: Problem) -> str:
    """Return the content of a row as text, without whitespace around the prompt."""
    rest: list[Any] = [problem.answer, problem.solution, problem.turns, problem.columns]
    return json.dumps([_stripped(problem.prompt), *rest], sort_keys=True, default=_as_text, ensure_ascii=False)


def _as_text(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)


def _stripped(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([{**message, "content": message["content"].strip()} for message in prompt], default=_as_text)

"""Count the tokens of many texts and prompts, in batches, if their bytes do not bound the counts well enough.

An ASCII text has at most as many tokens as bytes, plus those that a tokenizer adds around every text. If that bound is
enough, nothing is tokenised, so that a hundred thousand short rows take seconds. Bound and count are compared with
``encode_problem`` and ``encode_solution`` on a few texts, and only these two decide that a text is too long.

Left out: the ids themselves (``encoding``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.chat_rendering import render
from heliostat.models.prompts.control_tokens import has_typed
from heliostat.models.prompts.encoding import chat_messages, encode_problem, encode_solution
from heliostat.types import Problem, Prompt

UNBOUNDED = 2**62
_CHUNK = 512
_NUM_TRIED = 2  # texts of each chunk, compared with the slow method
SLACK = 2  # some tokenizers put a space first


def prompt_sizes(
    loaded: LoadedModel, problems: Sequence[Problem], chat: bool | Literal["auto"], system: str, enough: int
) -> list[int]:
    """Count the tokens of every prompt: exactly, or by a bound if that is at most ``enough``.

    Raises:
        ConfigError, ValueError: the error of ``encode_problem`` for the first prompt that cannot be encoded.
    """

    def exact(index: int) -> int:
        return len(encode_problem(loaded, problems[index], chat, system).token_ids)

    around = len(loaded.tokenizer("")["input_ids"]) + SLACK
    sizes: list[int] = []
    for start in range(0, len(problems), _CHUNK):
        texts = [_rendered(loaded, problem, chat, system) for problem in problems[start : start + _CHUNK]]
        sizes += _Counter(loaded, texts, around, exact, start).sizes([enough] * len(texts))
    return sizes


def _rendered(loaded: LoadedModel, problem: Problem, chat: bool | Literal["auto"], system: str) -> str | None:
    """Render the text of a prompt; ``None`` if it is tokenised in pieces, because its data contains control tokens."""
    messages = chat_messages(loaded, problem, chat, system)
    typed = [problem.prompt] if messages is None else [str(message["content"]) for message in messages]
    if any(has_typed(loaded, str(text)) for text in typed):
        return None
    if messages is None:
        return str(problem.prompt)
    return render(loaded, problem, messages, continue_last=messages[-1]["role"] == "assistant")


def solution_sizes(loaded: LoadedModel, texts: Sequence[str], enough: Sequence[int]) -> list[int]:
    """Count the tokens of every worked solution and its end: exactly, or by a bound of at most its ``enough``."""
    nothing = Prompt(Problem("", "", ""), ())

    def exact(index: int) -> int:
        return len(encode_solution(loaded, nothing, texts[index]))

    sizes: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = [None if has_typed(loaded, text) else text for text in texts[start : start + _CHUNK]]
        sizes += _Counter(loaded, chunk, 1 + SLACK, exact, start).sizes(enough[start : start + _CHUNK])
    return sizes


@dataclass(frozen=True, slots=True)
class _Counter:
    """A counter of tokens for chunks of texts.

    Attributes:
        around: tokens besides those of a text, at most.
        texts: ``None`` where only the slow way knows.
        exact: the slow way, by index from ``start``.
    """

    loaded: LoadedModel
    texts: Sequence[str | None]
    around: int
    exact: Callable[[int], int]
    start: int

    def sizes(self, enough: Sequence[int]) -> list[int]:
        """Return exact sizes, or bounds if they are enough."""
        bounds = [len(text) + self.around if text and text.isascii() else UNBOUNDED for text in self.texts]
        tried = range(min(_NUM_TRIED, len(bounds)))
        if any(self.exact(self.start + index) > bounds[index] for index in tried):
            return [self.exact(self.start + index) for index in range(len(bounds))]
        long = [index for index, bound in enumerate(bounds) if bound > enough[index]]
        for index, count in zip(long, self._counts(long), strict=True):
            fits = self.texts[index] is not None and count + self.around <= enough[index]
            bounds[index] = count + self.around if fits else self.exact(self.start + index)
        return bounds

    def _counts(self, indices: Sequence[int]) -> list[int]:
        """Count the tokens of the texts, without those around them, on all cores."""
        if not indices:
            return []
        _serial_in_forked_children()
        texts = [self.texts[index] or "" for index in indices]
        found = self.loaded.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [len(ids) for ids in found]


_PARALLELISM = "TOKENIZERS_PARALLELISM"


@cache
def _serial_in_forked_children() -> None:
    """Make processes forked later tokenize in one thread, unless the environment sets this.

    The threads of a tokenizer do not survive a fork, and one that is told to use them waits for ever. One that is told
    nothing prints a warning and goes on alone. A child that is told not to use threads does so without a word.
    """
    undone: list[bool] = []

    def before() -> None:
        undone.append(_PARALLELISM not in os.environ)
        os.environ.setdefault(_PARALLELISM, "false")

    def after_in_parent() -> None:
        if undone.pop():
            os.environ.pop(_PARALLELISM, None)

    os.register_at_fork(before=before, after_in_parent=after_in_parent)

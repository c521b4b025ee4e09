"""Encode control tokens that occur in data as text: ``<|im_end|>`` in a question does not end a turn.

Only the tokenizer's special tokens are control tokens. Other added tokens, like Qwen's ``<think>``, are words that data
may use. Text without any is tokenised in one piece.

Left out: the source of text (``encoding``, ``chat_rendering``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = [chr(code) for code in range(0xF0000, 0xF0100)]  # private use: no template looks at them


class Tokenized(Protocol):
    """A model by its tokenizer, of whatever kind the model is.

    Attributes:
        memo: results that are computed once per model.
    """

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def memo(self) -> dict[str, object]: ...


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokenizer's control tokens, longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True))


def pattern_of(loaded: Tokenized) -> re.Pattern[str] | None:
    """Return a pattern that matches control tokens; ``None`` if there are none. Compiled once per model."""
    if "control tokens" not in loaded.memo:
        tokens = control_tokens(loaded.tokenizer)
        loaded.memo["control tokens"] = re.compile("|".join(map(re.escape, tokens))) if tokens else None
    found = loaded.memo["control tokens"]
    assert found is None or isinstance(found, re.Pattern)
    return found


def free_mark(texts: Sequence[str]) -> str:
    """Return a character that none of the texts contains.

    Raises:
        ValueError: they hold every private one.
    """
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    raise ValueError("the text holds every character of a private range that could mark its control tokens")


def marked(loaded: Tokenized, text: str, mark: str) -> str:
    """Put ``mark`` around every control token in the text."""
    pattern = pattern_of(loaded)
    return text if pattern is None else pattern.sub(lambda found: f"{mark}{found.group()}{mark}", text)


def encode_marked(loaded: Tokenized, text: str, mark: str) -> list[int]:
    """Encode a text without its marks; everything between two marks is encoded as plain text."""
    ids: list[int] = []
    for number, part in enumerate(text.split(mark)):
        if part:
            ids += _as_text(loaded, part) if number % 2 else _plain(loaded, part)
    return ids


def encode_typed(loaded: Tokenized, text: str, markup: Sequence[tuple[int, int]] = (), place: str = "") -> list[int]:
    """Encode a text in which control tokens are special only if they begin inside ``markup``.

    Args:
        markup: parts of the text, as (start, end), that the recipe wrote.
        place: where the text comes from, for the warning that control tokens stay text.
    """
    typed = list(_typed(loaded, text, markup))
    if not typed:
        return _plain(loaded, text)
    warn_typed(loaded, text[slice(*typed[0])], place)
    ids, done = [], 0
    for start, end in typed:
        ids += _plain(loaded, text[done:start]) + _as_text(loaded, text[start:end])
        done = end
    return ids + _plain(loaded, text[done:])


def has_typed(loaded: Tokenized, text: str, markup: Sequence[tuple[int, int]] = ()) -> bool:
    """Return whether a control token occurs outside ``markup``."""
    return any(True for _ in _typed(loaded, text, markup))


def warn_typed(loaded: Tokenized, token: str, place: str) -> None:
    """Warn once per model that a control token in data is encoded as text."""
    if "typed" not in loaded.memo:
        loaded.memo["typed"] = token
        warnings.warn(
            f"{place or 'a text'} holds '{token}', a control token of model '{loaded.name}'; in data it stays text "
            "(a control token that is meant goes into task.template)",
            stacklevel=2,
        )


def _typed(loaded: Tokenized, text: str, markup: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    pattern = pattern_of(loaded)
    for found in pattern.finditer(text) if pattern is not None else ():
        if not any(start <= found.start() < end for start, end in markup):
            yield found.span()


def _plain(loaded: Tokenized, text: str) -> list[int]:
    return list(loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)) if text else []


def spell_all(loaded: Tokenized) -> None:
    """Encode every control token's spelling once, so that threads that encode later change no state of the tokenizer.

    A tokenizer is switched to another mode to spell a control token, for all threads that use it.
    """
    for token in control_tokens(loaded.tokenizer):
        _as_text(loaded, token)
    _plain(loaded, "a")  # switches back


def _as_text(loaded: Tokenized, token: str) -> list[int]:
    """Encode a control token's spelling in ordinary ids; once per model."""
    key = f"spelling of {token}"
    if key not in loaded.memo:
        loaded.memo[key] = tuple(_spelled(loaded, token))
    found = loaded.memo[key]
    assert isinstance(found, tuple)
    return list(found)


def _spelled(loaded: Tokenized, token: str) -> list[int]:
    special = {*loaded.tokenizer.all_special_ids} | {
        number for number, added in loaded.tokenizer.added_tokens_decoder.items() if added.special
    }
    ids = list(loaded.tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True))
    if special.isdisjoint(ids):
        return ids
    return _plain(loaded, token[:1]) + _plain(loaded, token[1:])  # it cannot split them: no token is found in halves

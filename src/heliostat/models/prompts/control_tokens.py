"""Control tokens that somebody typed stay text: ``<|im_end|>`` in a question ends no turn.

Only the tokenizer's special tokens are control tokens. Other added tokens, like Qwen's ``<think>``, are words that data
may use. Text without any is tokenised as ever, in one piece.

Left out: where text comes from (``encoding``, ``chat_rendering``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from heliostat.models.loaded_model import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = [chr(code) for code in range(0xF0000, 0xF0100)]  # private use: no template looks at them


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that mean something to the model and not to its readers, longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True))


def pattern_of(loaded: LoadedModel) -> re.Pattern[str] | None:
    """What finds a control token in a text; ``None`` where there are none. Made once per model."""
    if "control tokens" not in loaded.memo:
        tokens = control_tokens(loaded.tokenizer)
        loaded.memo["control tokens"] = re.compile("|".join(map(re.escape, tokens))) if tokens else None
    found = loaded.memo["control tokens"]
    assert found is None or isinstance(found, re.Pattern)
    return found


def free_mark(texts: Sequence[str]) -> str:
    """A character that none of the texts holds.

    Raises:
        ValueError: they hold every private one.
    """
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    raise ValueError("the text holds every character of a private range that could mark its control tokens")


def marked(loaded: LoadedModel, text: str, mark: str) -> str:
    """The text with ``mark`` around every control token."""
    pattern = pattern_of(loaded)
    return text if pattern is None else pattern.sub(lambda found: f"{mark}{found.group()}{mark}", text)


def encode_marked(loaded: LoadedModel, text: str, mark: str) -> list[int]:
    """Ids of a text without its marks; what stands between two of them is text, whatever it looks like."""
    ids: list[int] = []
    for number, part in enumerate(text.split(mark)):
        if part:
            ids += _as_text(loaded, part) if number % 2 else _plain(loaded, part)
    return ids


def encode_typed(loaded: LoadedModel, text: str, markup: Sequence[tuple[int, int]] = (), place: str = "") -> list[int]:
    """Ids of a text in which control tokens count only where they begin inside ``markup``.

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


def has_typed(loaded: LoadedModel, text: str, markup: Sequence[tuple[int, int]] = ()) -> bool:
    """Whether a control token stands outside ``markup``."""
    return any(True for _ in _typed(loaded, text, markup))


def warn_typed(loaded: LoadedModel, token: str, place: str) -> None:
    """Say once per model that a control token was typed and stays text."""
    if "typed" not in loaded.memo:
        loaded.memo["typed"] = token
        warnings.warn(
            f"{place or 'a text'} holds '{token}', a control token of model '{loaded.name}'; in data it stays text "
            "(a control token that is meant goes into task.template)",
            stacklevel=2,
        )


def _typed(loaded: LoadedModel, text: str, markup: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    pattern = pattern_of(loaded)
    for found in pattern.finditer(text) if pattern is not None else ():
        if not any(start <= found.start() < end for start, end in markup):
            yield found.span()


def _plain(loaded: LoadedModel, text: str) -> list[int]:
    return list(loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)) if text else []


def _as_text(loaded: LoadedModel, token: str) -> list[int]:
    """A control token's spelling in ordinary ids."""
    special = {*loaded.tokenizer.all_special_ids} | {
        number for number, added in loaded.tokenizer.added_tokens_decoder.items() if added.special
    }
    ids = list(loaded.tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True))
    if special.isdisjoint(ids):
        return ids
    return _plain(loaded, token[:1]) + _plain(loaded, token[1:])  # a tokenizer that cannot: no token is found in halves

"""Turns in plain text: an observation between the affixes that the tokenizer adds after every text.

    bos prompt sep | turn eos | observation sep | turn eos | ...            the tiny model
    prompt         | turn eos | observation     | turn eos | ...            tokenizers that add nothing after a text

In the second case, line breaks stand around each observation.

Left out: chats (``chat_turns``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heliostat.models.loaded_model import LoadedModel
from heliostat.models.prompts.control_tokens import encode_typed
from heliostat.models.prompts.encoding import affixes, decode
from heliostat.types import Message, Problem

_LINE_BREAK = "\n"


@dataclass(frozen=True, slots=True)
class PlainTurns:
    """The turns of a model that is prompted with plain text.

    Attributes:
        end: ids that the tokenizer adds after every text, without end-of-sequence ids.
    """

    loaded: LoadedModel
    end: tuple[int, ...]

    @classmethod
    def of(cls, loaded: LoadedModel) -> PlainTurns:
        """Return the turns of a model, by its tokenizer's affixes."""
        return cls(loaded, tuple(token for token in affixes(loaded)[1] if token != loaded.eos_id))

    def continuation(self, observation: str | Sequence[Message], last_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the observation's ids and those that follow every text; see ``TurnFormat.continuation``."""
        text = as_text(observation)
        if not self.end:
            text = _LINE_BREAK + text + _LINE_BREAK
            text = text[overlap(self.loaded, last_ids, _LINE_BREAK) :]
        return (*encode_typed(self.loaded, text, place="an observation"), *self.end)

    def with_observation(self, problem: Problem, observation: str | Sequence[Message]) -> Problem:
        """Append the first observation to the prompt's text."""
        assert isinstance(problem.prompt, str)
        return replace(problem, prompt=joined(problem.prompt, as_text(observation)))


def as_text(observation: str | Sequence[Message]) -> str:
    """Return an observation as text: the contents of its messages, one after the other."""
    if isinstance(observation, str):
        return observation
    return _LINE_BREAK.join(str(message["content"]) for message in observation)


def joined(first: str, second: str) -> str:
    """Join two texts with a line break, unless one of them is empty."""
    return _LINE_BREAK.join(text for text in (first, second) if text)


def overlap(loaded: LoadedModel, last_ids: Sequence[int], lead: str) -> int:
    """Return how many characters of ``lead`` a turn that was ended by a stop string has already written."""
    if not lead or not last_ids or last_ids[-1] in loaded.eos_ids:
        return 0
    text = decode(loaded, last_ids[-8 * len(lead) :])
    return max(length for length in range(len(lead) + 1) if text.endswith(lead[:length]))

"""Count tokens for a model that is named and not loaded: its tokenizer and its configuration are enough.

Left out: exact counts, which a run checks before its first step (``prompts.token_counts``); a chat template's own
tokens are allowed for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heliostat.models.loaded_model import SMOLLM2, TINY
from heliostat.models.loading.hub import read_tokenizer
from heliostat.models.loading.smollm2 import cache_folder
from heliostat.models.loading.tiny import TinyShape, tiny_tokenizer
from heliostat.run_models import model_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE = 40  # tokens that a chat template may add around one message


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """A tokenizer with the context length of its model."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without those that a tokenizer adds around it."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def room_for_prompt(self, budget: int) -> int:
        """Return how long a prompt's own text may be if ``budget`` tokens follow it."""
        return self.context_length - budget - _TEMPLATE * bool(self.tokenizer.chat_template)


def token_counter(path: str) -> TokenCounter | None:
    """Read the tokenizer of a model by its name in ``model.path``; no request is sent and no weights are read.

    Returns:
        ``None`` if the model is not on this machine.

    Raises:
        ConfigError: the folder that is named holds no causal language model.
    """
    if path == TINY:
        length = TinyShape().context_length
        return TokenCounter(tiny_tokenizer(length), length)
    if path == SMOLLM2:
        folder = cache_folder() / "smollm2-135m-instruct"
        path = str(folder)
        if not folder.is_dir():
            return None
    found = read_tokenizer(model_of(path))
    return None if found is None else TokenCounter(*found)

"""What all prompts of a batch begin with, prefilled once for all: a system prompt, a template's head, worked examples.

Left out: a beginning that only some prompts share, and decoding against it (``rollout.shared``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.rollout.rows import key_values

MIN_TOKENS = 16
"""A shorter beginning is left with the prompts: a part of attention more in every pass would cost what it saves."""


@dataclass(frozen=True, slots=True)
class Common:
    """A beginning and its keys and values, ``[1, head, column, feature]`` a layer.

    Attributes:
        length: its tokens; 0 where there is none worth the trouble.
    """

    loaded: LoadedModel
    length: int
    states: list[tuple[Tensor, Tensor]]

    @classmethod
    @torch.inference_mode()
    def of(cls, loaded: LoadedModel, contexts: Sequence[Sequence[int]]) -> Common:
        """The longest beginning of all contexts that leaves each a token, run through the model."""
        length = num_common_tokens(contexts)
        if length < MIN_TOKENS or len(contexts) < 2:
            return cls(loaded, 0, [])
        cache = DynamicCache(config=loaded.model.config)
        ids = torch.tensor([list(contexts[0][:length])], device=loaded.model.device)
        loaded.head.hidden(input_ids=ids, memory=cache, use_cache=True)
        return cls(loaded, length, [key_values(layer) for layer in cache.layers])

    def cache(self, num_prompts: int) -> DynamicCache:
        """A cache of its own for prompts that go on from here."""
        cache = DynamicCache(config=self.loaded.model.config)
        for layer, states in enumerate(self.states):
            keys, values = (each.expand(num_prompts, -1, -1, -1) for each in states)
            cache.update(keys, values, layer)
        return cache


def num_common_tokens(contexts: Sequence[Sequence[int]]) -> int:
    """Tokens that all contexts begin with, at least one short of each.

    **Limits** 0 for no contexts; one short of the context for one.
    """
    if not contexts:
        return 0
    columns = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*contexts, strict=False))
    return min(sum(1 for _ in columns), min(map(len, contexts)) - 1)

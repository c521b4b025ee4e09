"""The beginning that all prompts of a batch share, prefilled once: a system prompt, a template's head, worked examples.

Left out: a beginning that only some prompts share, and decoding against it (``in_process.shared``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.rollout.in_process.rows import key_values

MIN_TOKENS = 16
"""A shorter beginning stays with the prompts: one more part of attention in every pass would cost what it saves."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A shared beginning with its keys and values, ``[1, head, column, feature]`` per layer.

    Attributes:
        length: its number of tokens; 0 where it is shorter than ``MIN_TOKENS``.
    """

    loaded: LoadedModel
    length: int
    states: list[tuple[Tensor, Tensor]]

    @classmethod
    @torch.inference_mode()
    def of(cls, loaded: LoadedModel, contexts: Sequence[Sequence[int]]) -> SharedPrefix:
        """Prefill the longest beginning of all contexts that leaves each at least one token."""
        length = num_common_tokens(contexts)
        if length < MIN_TOKENS or len(contexts) < 2:
            return cls(loaded, 0, [])
        cache = DynamicCache(config=loaded.model.config)
        ids = torch.tensor([list(contexts[0][:length])], device=loaded.model.device)
        loaded.head.hidden(input_ids=ids, memory=cache, use_cache=True)
        return cls(loaded, length, [key_values(layer) for layer in cache.layers])

    def cache(self, num_prompts: int) -> DynamicCache:
        """Return a new cache for prompts that continue from this beginning."""
        cache = DynamicCache(config=self.loaded.model.config)
        for layer, states in enumerate(self.states):
            keys, values = (each.expand(num_prompts, -1, -1, -1) for each in states)
            cache.update(keys, values, layer)
        return cache


def num_common_tokens(contexts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all contexts begin with, leaving each at least one.

    **Limits** 0 for no contexts; one short of the context for one.
    """
    if not contexts:
        return 0
    columns = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*contexts, strict=False))
    return min(sum(1 for _ in columns), min(map(len, contexts)) - 1)

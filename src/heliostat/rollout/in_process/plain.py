"""Decoding for models whose memory is not plain keys and values: recurrent state, convolution state, sliding windows.

Such a memory cannot be padded, trimmed or joined from outside, so prompts of equal length are decoded together, one row
per completion, until all have ended. A model that hands out no memory at all runs its whole text again for every token.
Slower than ``TorchEngine`` (each member of a group runs its prompt again, ended rows idle, and of several turns each
runs the text before it again), and exact for any causal model.

Left out: refilling and eviction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from heliostat.models import LoadedModel
from heliostat.models.transformers_internals import accepts, memory_argument, memory_of
from heliostat.rollout.completions import CompletionBuilder, DecodeLimits, GroupCollector, PartialCompletion
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import SamplingSettings, draw
from heliostat.spans import span
from heliostat.types import Group, Prompt


class PlainEngine:
    """An engine that decodes through the model's own forward and its own kind of memory.

    Args:
        has_memory: whether a forward continues from the memory that the last one returned; ``None``: where the model
            returns one.

    Attributes:
        way: the name of this way of decoding, as part of a sentence.
    """

    def __init__(self, loaded: LoadedModel, limits: DecodeLimits, has_memory: bool | None = None) -> None:
        self.loaded = loaded
        self.limits = limits
        self.builder = CompletionBuilder(loaded, limits)
        self.device = next(loaded.model.parameters()).device
        self.counts = RolloutCounts()
        self.has_memory = _hands_out_memory(loaded) if has_memory is None else has_memory
        self._options = _last_logits_only(loaded)
        self.way = ""

    @torch.inference_mode()
    def sample(self, request: SampleRequest) -> list[Group]:
        """Sample a group for every prompt; see ``Engine.sample``."""
        partials = self.builder.begin(request)
        collector = GroupCollector(self.builder, request, partials)
        rows = [(prompt, one) for prompt, group in zip(request.prompts, partials, strict=True) for one in group]
        while rows:
            for batch in self._batches(rows):
                self._decode(batch, request.settings)
                collector.collect()
            rows = self._going_on(rows)
            collector.collect()
        return collector.groups()

    def _going_on(self, rows: list[tuple[Prompt, PartialCompletion]]) -> list[tuple[Prompt, PartialCompletion]]:
        """Wait for the replies to turns, and return the completions that have another turn."""
        waiting = [(prompt, partial) for prompt, partial in rows if partial.pending is not None]
        with span("environment"):
            return [(prompt, partial) for prompt, partial in waiting if self.builder.go_on(partial)]

    def take_counts(self) -> RolloutCounts:
        """See ``Engine.take_counts``."""
        counts, self.counts = self.counts, RolloutCounts()
        return counts

    def clone_for(self, loaded: LoadedModel) -> PlainEngine:
        """See ``Engine.clone_for``."""
        clone = PlainEngine(loaded, self.limits, self.has_memory)
        clone.way = self.way
        return clone

    def stop(self) -> None:
        """See ``Engine.stop``; it ends at the next token."""
        self.builder.stopped.set()

    def _batches(
        self, rows: list[tuple[Prompt, PartialCompletion]]
    ) -> Iterator[list[tuple[Prompt, PartialCompletion]]]:
        """Yield rows of equal length so far, at most ``max_rows`` at once."""
        by_length: dict[int, list[tuple[Prompt, PartialCompletion]]] = {}
        for prompt, partial in rows:
            by_length.setdefault(len(prompt.context_ids) + len(partial.token_ids), []).append((prompt, partial))
        for alike in by_length.values():
            for first in range(0, len(alike), self.limits.max_rows):
                yield alike[first : first + self.limits.max_rows]

    def _decode(self, rows: list[tuple[Prompt, PartialCompletion]], settings: SamplingSettings) -> None:
        partials = [partial for _, partial in rows]
        texts = [(*prompt.context_ids, *partial.token_ids) for prompt, partial in rows]
        tokens = torch.tensor(texts, device=self.device)
        memory = None
        length = tokens.shape[1]
        self.counts.add_prompts([length] * len(rows), group_size=1)
        while True:
            memory_in: dict[str, Any] = {"use_cache": self.has_memory}
            if memory is not None:
                memory_in[memory_argument(self.loaded.model) or "past_key_values"] = memory
            output = self.loaded.model(input_ids=tokens, **memory_in, **self._options)
            uniform = torch.tensor(
                [partial.next_uniform for partial in partials], dtype=torch.float64, device=self.device
            )
            drawn = draw(output.logits[:, -1], uniform, settings)
            self.builder.record(partials, drawn)
            if not any(partial.is_live for partial in partials):
                return
            drawn_ids = drawn.token.unsqueeze(1)
            memory = memory_of(output) if self.has_memory else None
            tokens = drawn_ids if self.has_memory else torch.cat([tokens, drawn_ids], dim=1)
            length += 1
            self.counts.decode_steps += 1
            self.counts.decoded_rows += tokens.numel()
            self.counts.decoded_attended += len(rows) * length * (1 if self.has_memory else (length + 1) // 2)


@torch.inference_mode()
def _hands_out_memory(loaded: LoadedModel) -> bool:
    """Return whether a forward returns a memory that the next one can continue from."""
    ids = torch.full((1, 2), loaded.eos_id, device=loaded.model.device)
    return memory_of(loaded.model(input_ids=ids, use_cache=True)) is not None


def _last_logits_only(loaded: LoadedModel) -> dict[str, int]:
    """Return the argument that asks a forward for the last token's logits alone, where it takes one."""
    return {"logits_to_keep": 1} if accepts(loaded.model, "logits_to_keep") else {}

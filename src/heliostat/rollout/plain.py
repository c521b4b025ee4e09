"""Decoding for models whose memory is not plain keys and values: recurrent state, convolution state, sliding windows.

Such a memory cannot be padded, trimmed or joined from outside, so prompts of equal length are decoded together, one row
per completion, until all have ended. A model that hands out no memory at all runs its whole text again for every token.
Slower than ``TorchEngine`` (each member of a group runs its prompt again, and ended rows idle), and exact for any
causal model.

Left out: refilling and eviction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from heliostat.models import LoadedModel
from heliostat.models.transformers_internals import accepts, memory_argument, memory_of
from heliostat.rollout.drafts import Announce, DecodeLimits, Draft, Harvest, Scribe
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.sampling import SamplingSettings, draw
from heliostat.types import Group, Prompt


class PlainEngine:
    """Decode through the model's own forward and its own kind of memory.

    Args:
        has_memory: whether what a forward returns is used by the next; default: where there is anything.

    Attributes:
        way: how a sentence calls this way of decoding.
    """

    def __init__(self, loaded: LoadedModel, limits: DecodeLimits, has_memory: bool | None = None) -> None:
        self.loaded = loaded
        self.limits = limits
        self.scribe = Scribe(loaded, limits)
        self.device = next(loaded.model.parameters()).device
        self.counts = RolloutCounts()
        self.has_memory = _hands_out_memory(loaded) if has_memory is None else has_memory
        self._options = _last_logits_only(loaded)
        self.way = ""

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        settings: SamplingSettings,
        *,
        seed: int,
        policy_step: int,
        announce: Announce | None = None,
    ) -> list[Group]:
        """Sample a group for every prompt; see ``Engine.sample``."""
        drafts = self.scribe.begin(prompts, group_size, seed)
        harvest = Harvest(self.scribe, prompts, drafts, policy_step, announce)
        work = [(prompt, draft) for prompt, group in zip(prompts, drafts, strict=True) for draft in group]
        for rows in self._batches(work):
            self._decode(rows, settings)
            harvest.gather()
        return harvest.groups()

    def take_counts(self) -> RolloutCounts:
        """What was computed since the last call."""
        counts, self.counts = self.counts, RolloutCounts()
        return counts

    def beside(self, loaded: LoadedModel) -> PlainEngine:
        """See ``Engine.beside``."""
        aside = PlainEngine(loaded, self.limits, self.has_memory)
        aside.way = self.way
        return aside

    def stop(self) -> None:
        """See ``Engine.stop``; it ends at the next token."""
        self.scribe.stopped.set()

    def _batches(self, work: list[tuple[Prompt, Draft]]) -> Iterator[list[tuple[Prompt, Draft]]]:
        """Rows of equal context length, at most ``max_rows`` at once."""
        by_length: dict[int, list[tuple[Prompt, Draft]]] = {}
        for prompt, draft in work:
            by_length.setdefault(len(prompt.context_ids), []).append((prompt, draft))
        for rows in by_length.values():
            for first in range(0, len(rows), self.limits.max_rows):
                yield rows[first : first + self.limits.max_rows]

    def _decode(self, rows: list[tuple[Prompt, Draft]], settings: SamplingSettings) -> None:
        drafts = [draft for _, draft in rows]
        tokens = torch.tensor([prompt.context_ids for prompt, _ in rows], device=self.device)
        memory = None
        length = tokens.shape[1]
        self.counts.add_prompts([length] * len(rows), group_size=1)
        while True:
            memory_in: dict[str, Any] = {"use_cache": self.has_memory}
            if memory is not None:
                memory_in[memory_argument(self.loaded.model) or "past_key_values"] = memory
            output = self.loaded.model(input_ids=tokens, **memory_in, **self._options)
            uniform = torch.tensor([draft.next_uniform for draft in drafts], dtype=torch.float64, device=self.device)
            drawn = draw(output.logits[:, -1], uniform, settings)
            self.scribe.record(drafts, drawn)
            if all(draft.stop_reason is not None for draft in drafts):
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
    """Whether a forward returns what the next one can continue from."""
    ids = torch.full((1, 2), loaded.eos_id, device=loaded.model.device)
    return memory_of(loaded.model(input_ids=ids, use_cache=True)) is not None


def _last_logits_only(loaded: LoadedModel) -> dict[str, int]:
    """What asks a forward for the logits of the last token alone, where it can be asked."""
    return {"logits_to_keep": 1} if accepts(loaded.model, "logits_to_keep") else {}

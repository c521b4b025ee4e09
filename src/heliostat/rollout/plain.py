"""Decoding for models whose memory is not plain keys and values: recurrent state, convolution state, sliding windows.

Such a memory cannot be padded, trimmed or joined from outside, so prompts of equal length are decoded together, one row
per completion, until all have ended. A model that hands out no memory at all runs its whole text again for every token.
Slower than ``TorchEngine`` (each member of a group runs its prompt again, and ended rows idle), and exact for any
causal model.

Left out: refilling and eviction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from heliostat.models import LoadedModel
from heliostat.rollout.drafts import Announce, DecodeLimits, Draft, Harvest, Scribe
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.sampling import SamplingSettings, draw
from heliostat.types import Group, Prompt


class PlainEngine:
    """Decode through the model's own forward and its own kind of memory."""

    def __init__(self, loaded: LoadedModel, limits: DecodeLimits) -> None:
        self.loaded = loaded
        self.limits = limits
        self.scribe = Scribe(loaded, limits)
        self.device = next(loaded.model.parameters()).device
        self.counts = RolloutCounts()
        self.has_memory = _hands_out_memory(loaded)

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
        return PlainEngine(loaded, self.limits)

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
            memory_in = {"past_key_values": memory, "use_cache": True} if self.has_memory else {"use_cache": False}
            output = self.loaded.model(input_ids=tokens, logits_to_keep=1, **memory_in)
            uniform = torch.tensor([draft.next_uniform for draft in drafts], dtype=torch.float64, device=self.device)
            drawn = draw(output.logits[:, -1], uniform, settings)
            self.scribe.record(drafts, drawn)
            if all(draft.stop_reason is not None for draft in drafts):
                return
            drawn_ids = drawn.token.unsqueeze(1)
            memory = output.past_key_values if self.has_memory else None
            tokens = drawn_ids if self.has_memory else torch.cat([tokens, drawn_ids], dim=1)
            length += 1
            self.counts.decode_steps += 1
            self.counts.decoded_rows += tokens.numel()
            self.counts.decoded_attended += len(rows) * length * (1 if self.has_memory else (length + 1) // 2)


@torch.inference_mode()
def _hands_out_memory(loaded: LoadedModel) -> bool:
    """Whether a forward returns what the next one can continue from."""
    ids = torch.full((1, 2), loaded.eos_id, device=loaded.model.device)
    return getattr(loaded.model(input_ids=ids, use_cache=True), "past_key_values", None) is not None

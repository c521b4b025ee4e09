"""The in-process rollout engine: the trainer's own weights, one prefill per prompt, rows that leave when they end.

    prompts --prefill once--> rows (x group size) --decode--> finished rows leave, the next prompts take their place

Several threads may each do this for a share of the prompts. Weights are used in place, so sampler and trainer cannot
drift apart, and the log-probabilities recorded here are the trainer's to float accuracy (``policy/sampler_gap`` says
how closely, every step).

Left out: models without a plain key/value cache (``rollout.plain``), servers, and verification.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.rollout.common_prefix import Common
from heliostat.rollout.drafts import Announce, DecodeLimits, Draft, Harvest, Scribe
from heliostat.rollout.fused import FusedLayers
from heliostat.rollout.fused import fused_layers as fuse
from heliostat.rollout.rows import LiveRows, Rows
from heliostat.rollout.sampling import SamplingSettings, draw
from heliostat.rollout.shared import SharedRows, attending, shares_prompts
from heliostat.rollout.workers import Work, side_by_side
from heliostat.spans import span
from heliostat.types import Group, Prompt


@dataclass(slots=True)
class RolloutCounts:
    """What sampling really computed; exact, so that tests and the ledger can rely on it.

    Attributes:
        prefills: prompts run (once per group).
        prompt_tokens, prompt_attended: their tokens, and the positions those attended to; a beginning that all
            prompts share counts once.
        decode_steps, decoded_rows: forward passes over live rows, and rows in them.
        decoded_attended: positions the decoded tokens attended to.
        unshared_prefills, unshared_tokens, unshared_attended: the prompts if every completion had run its own.
    """

    prefills: int = 0
    prompt_tokens: int = 0
    prompt_attended: int = 0
    decode_steps: int = 0
    decoded_rows: int = 0
    decoded_attended: int = 0
    unshared_prefills: int = 0
    unshared_tokens: int = 0
    unshared_attended: int = 0

    def __add__(self, other: RolloutCounts) -> RolloutCounts:
        names = (field.name for field in dataclasses.fields(self))
        return RolloutCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def add_prompts(self, lengths: Sequence[int], group_size: int, num_common: int = 0) -> None:
        """Count one prefill of prompts, each of which goes on to ``group_size`` completions.

        Args:
            lengths: whole, with the ``num_common`` tokens that had been prefilled before (``add_common``).
        """
        attended = sum(length * (length + 1) // 2 for length in lengths)
        self.prefills += len(lengths)
        self.prompt_tokens += sum(lengths) - num_common * len(lengths)
        self.prompt_attended += attended - num_common * (num_common + 1) // 2 * len(lengths)
        self.unshared_prefills += group_size * len(lengths)
        self.unshared_tokens += group_size * sum(lengths)
        self.unshared_attended += group_size * attended

    def add_common(self, length: int) -> None:
        """Count the one prefill of what all prompts begin with."""
        self.prompt_tokens += length
        self.prompt_attended += length * (length + 1) // 2


class Engine(Protocol):
    """Anything that continues prompts and reports its own log-probabilities."""

    @property
    def way(self) -> str:
        """How a sentence calls this way of decoding."""
        ...

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
        """``group_size`` completions of every prompt, in prompt order; groups may be announced before all are done."""
        ...

    def take_counts(self) -> RolloutCounts:
        """What was computed since the last call."""
        ...

    def beside(self, loaded: LoadedModel) -> Engine:
        """The same engine on a twin of its model, for another thread to use at the same time."""
        ...

    def stop(self) -> None:
        """For good: a sample that another thread has begun raises ``SamplingStopped`` soon."""
        ...


class TorchEngine:
    """Decode with a Hugging Face causal LM in this process.

    Args:
        shared_prompt: decode against one copy of each prompt, where the model can (``rollout.shared``), and prefill
            what all prompts of a call begin with once.
        fused_layers: with shared prompts, decode through fused layers where the model's have the shape
            (``rollout.fused``).
        num_workers: threads that decode apart, each a share of the prompts with its share of torch's own threads.
        copies: how rows are kept where prompts are not shared.

    Attributes:
        way: how a sentence calls this way of decoding.

    Limits:
        ``group_size=1`` equals sampling each prompt alone; any ``max_rows``, ``num_workers``, ``shared_prompt`` and
        ``fused_layers`` give the same completions (to float accuracy of the logits), since every completion has its
        own random stream.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        limits: DecodeLimits,
        shared_prompt: bool = True,
        num_workers: int = 1,
        fused_layers: bool = True,
        copies: type[Rows] = Rows,
    ) -> None:
        self.loaded = loaded
        self.limits = limits
        self.num_workers = num_workers
        self.scribe = Scribe(loaded, limits)
        self._counted: list[RolloutCounts] = []
        self.copies = copies
        self.rows_kind: type[Rows | SharedRows] = SharedRows if shared_prompt and shares_prompts(loaded) else copies
        self.fused = fuse(loaded) if fused_layers and self.rows_kind is SharedRows else None
        self.way = ""

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
        groups: dict[int, Group] = {}

        def lane(share: Sequence[int], limits: DecodeLimits) -> Work:
            def tell(place: int, group: Group) -> None:
                groups[share[place]] = group
                if announce is not None:
                    announce(share[place], group)

            mine = [prompts[index] for index in share], [drafts[index] for index in share]
            harvest = Harvest(self.scribe, *mine, policy_step, tell)
            self._counted.append(RolloutCounts())
            return _Lane(self.loaded, limits, self.copies, common, self.fused, settings, harvest, self._counted[-1]).run

        # Prompts of similar length share a prefill; what is sampled does not depend on the order.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].context_ids))
        num_lanes = max(1, min(self.num_workers, len(prompts)))
        limits = dataclasses.replace(self.limits, max_rows=max(1, self.limits.max_rows // num_lanes))
        if self.fused is not None:
            self.fused.refresh()
        with attending(self.loaded.model) if self.rows_kind is SharedRows else nullcontext():
            common = self._common(prompts) if self.rows_kind is SharedRows else None
            side_by_side([lane(order[first::num_lanes], limits) for first in range(num_lanes)])
        return [groups[index] for index in range(len(prompts))]

    def _common(self, prompts: Sequence[Prompt]) -> Common:
        """What all prompts begin with, prefilled."""
        with span("prefill"):
            common = Common.of(self.loaded, [prompt.context_ids for prompt in prompts])
        self._counted.append(RolloutCounts())
        self._counted[-1].add_common(common.length)
        return common

    @property
    def counts(self) -> RolloutCounts:
        """What was computed since it was last taken."""
        return sum(self._counted, start=RolloutCounts())

    def take_counts(self) -> RolloutCounts:
        """What was computed since the last call."""
        counts, self._counted = self.counts, []
        return counts

    def beside(self, loaded: LoadedModel) -> TorchEngine:
        """See ``Engine.beside``."""
        is_shared, is_fused = self.rows_kind is SharedRows, self.fused is not None
        aside = TorchEngine(loaded, self.limits, is_shared, self.num_workers, is_fused, self.copies)
        aside.way = self.way
        return aside

    def stop(self) -> None:
        """See ``Engine.stop``; it ends at the next token."""
        self.scribe.stopped.set()


@dataclass(slots=True)
class _Lane:
    """One thread's decoding: a share of the prompts, continued to their ends.

    Attributes:
        copies: how rows are kept where ``common`` is ``None``.
        common: what all prompts begin with; ``None`` where each row is to have a copy of its whole prompt.
        fused: what to decode with instead of the model's own forward.
        harvest: the prompts, their drafts, and who is told of finished groups.
    """

    loaded: LoadedModel
    limits: DecodeLimits
    copies: type[Rows]
    common: Common | None
    fused: FusedLayers | None
    settings: SamplingSettings
    harvest: Harvest
    counts: RolloutCounts

    @torch.inference_mode()
    def run(self, stopped: Callable[[], bool]) -> None:
        """Write all drafts; ``stopped`` is asked now and then whether anybody still wants them."""
        prompts, drafts = self.harvest.prompts, self.harvest.drafts
        waiting = deque(range(len(prompts)))
        state: _State | None = None
        while (waiting or state) and not stopped():
            num_live = len(state.drafts) if state else 0
            group_size = len(drafts[0])
            if waiting and (num_live == 0 or num_live + group_size <= self.limits.max_rows):
                admitted = self._admit(waiting, group_size, num_live)
                with span("prefill"):
                    fresh = self._prefill([prompts[index] for index in admitted], [drafts[index] for index in admitted])
                state = state.joined(fresh) if state else fresh
            assert state is not None
            state = self._decode(state)
            self.harvest.gather()

    @property
    def device(self) -> torch.device:
        return self.loaded.model.device

    def _admit(self, waiting: deque[int], group_size: int, num_live: int) -> list[int]:
        num = max(1, (self.limits.max_rows - num_live) // group_size)
        return [waiting.popleft() for _ in range(min(num, len(waiting)))]

    def _prefill(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Draft]]) -> _State:
        """Run each prompt once; every member of its group goes on from there."""
        group_size = len(groups[0])
        num_common = self.common.length if self.common else 0
        lengths = torch.tensor([len(prompt.context_ids) - num_common for prompt in prompts])
        longest = int(lengths.max())
        ids = torch.full((len(prompts), longest), self.loaded.pad_id)
        for row, prompt in enumerate(prompts):
            rest = prompt.context_ids[num_common:]
            ids[row, longest - len(rest) :] = torch.tensor(rest)
        start = longest - lengths
        positions = torch.arange(longest)[None] - start[:, None]
        attended = torch.nn.functional.pad((positions >= 0).long(), (num_common, 0), value=1)
        cache = self.common.cache(len(prompts)) if self.common else DynamicCache(config=self.loaded.model.config)
        hidden = self.loaded.head.hidden(
            input_ids=ids.to(self.device),
            attention_mask=attended.to(self.device),
            position_ids=(num_common + positions.clamp(min=0)).to(self.device),
            memory=cache,
            use_cache=True,
        )
        self.counts.add_prompts((lengths + num_common).tolist(), group_size, num_common)
        logits = self.loaded.head.logits(hidden[:, -1]).repeat_interleave(group_size, dim=0)
        drafts = [draft for group in groups for draft in group]
        as_rows = self.copies if self.common is None else partial(SharedRows, num_common=num_common)
        return _State(as_rows(cache, start.to(self.device), group_size, _room(drafts)), logits, drafts)

    def _decode(self, state: _State) -> _State | None:
        """Decode until enough rows have ended to be worth removing; return what is still alive, ready to go on."""
        while True:
            uniform = torch.tensor(
                [draft.next_uniform for draft in state.drafts], dtype=torch.float64, device=self.device
            )
            with span("draw"):
                drawn = draw(state.logits, uniform, self.settings)
                self.harvest.scribe.record(state.drafts, drawn)
            alive = [row for row, draft in enumerate(state.drafts) if draft.stop_reason is None]
            if not alive:
                return None
            enough_ended = len(state.drafts) - len(alive) >= self.limits.min_freed * len(state.drafts)
            token = drawn.token
            if enough_ended:
                kept = torch.tensor(alive, device=self.device)
                state.drafts = [state.drafts[row] for row in alive]
                state.rows.keep(kept, room=_room(state.drafts))
                token = token[kept]
            with span("decode"):
                state.logits = self._step(state.rows, token)
            if enough_ended:
                return state

    def _step(self, rows: LiveRows, token: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Feed one token to every row and return the next logits."""
        self.counts.decode_steps += 1
        self.counts.decoded_rows += rows.num_rows
        self.counts.decoded_attended += rows.num_attended
        fed = token.unsqueeze(1)
        if self.fused is not None and isinstance(rows, SharedRows):
            hidden = self.fused.hidden(rows, fed)
        else:
            hidden = rows.hidden(self.loaded, fed)
        return self.loaded.head.logits(hidden[:, -1])


@dataclass(slots=True)
class _State:
    """Everything alive: cache rows, the logits of each row's next token, and the drafts they belong to."""

    rows: LiveRows
    logits: Float[Tensor, "row vocab"]
    drafts: list[Draft]

    def joined(self, fresh: _State) -> _State:
        drafts = self.drafts + fresh.drafts
        self.rows.join(fresh.rows, room=_room(drafts))
        return _State(self.rows, torch.cat([self.logits, fresh.logits]), drafts)


def _room(drafts: Sequence[Draft]) -> int:
    """Columns the longest unfinished draft may still need."""
    return max(draft.num_left for draft in drafts)

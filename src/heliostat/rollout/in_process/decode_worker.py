"""One thread's decoding: prefill the prompts of its share, and decode their groups token by token.

Left out: which prompts are whose share (``in_process.engine``), completions of several turns (``turns``), and how rows
are stored (``rows``, ``shared``).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from heliostat.models import LoadedModel
from heliostat.rollout.completions import DecodeLimits, GroupCollector, PartialCompletion
from heliostat.rollout.engine import RolloutCounts
from heliostat.rollout.in_process.fused import FusedLayers
from heliostat.rollout.in_process.rows import LiveRows, Rows
from heliostat.rollout.in_process.shared import SharedRows
from heliostat.rollout.in_process.shared_prefix import SharedPrefix
from heliostat.rollout.sampling import draw
from heliostat.spans import span
from heliostat.threads import torch_threads
from heliostat.types import Prompt


@dataclass(slots=True)
class DecodeWorker:
    """A worker that decodes a share of a request's prompts to their ends.

    Attributes:
        copies: the class that stores rows where ``shared_prefix`` is ``None``.
        shared_prefix: the beginning of all prompts, prefilled; ``None`` where each row has a copy of its whole prompt.
        fused: fused layers, to decode with in place of the model's own forward.
        collector: the request and its completions; it reports finished groups.
        pass_threads: torch's threads in a decoding pass and the draw after it; 0: as in a prefill.
    """

    loaded: LoadedModel
    limits: DecodeLimits
    copies: type[Rows]
    shared_prefix: SharedPrefix | None
    fused: FusedLayers | None
    collector: GroupCollector
    counts: RolloutCounts
    pass_threads: int = 0

    @torch.inference_mode()
    def run(self, stopped: Callable[[], bool]) -> None:
        """Decode until all completions have ended, or ``stopped`` returns true."""
        prompts, partials = self.collector.request.prompts, self.collector.partials
        waiting = deque(range(len(prompts)))
        state: DecodeState | None = None
        while (waiting or state) and not stopped():
            num_live = len(state.partials) if state else 0
            group_size = len(partials[0])
            if waiting and (num_live == 0 or num_live + group_size <= self.limits.max_rows):
                admitted = self._admit(waiting, group_size, num_live)
                fresh = self.prefill(admitted)
                state = state.joined(fresh) if state else fresh
            assert state is not None
            state = self._decode(state)
            self.collector.collect()

    @property
    def device(self) -> torch.device:
        return self.loaded.model.device

    def _admit(self, waiting: deque[int], group_size: int, num_live: int) -> list[int]:
        num = max(1, (self.limits.max_rows - num_live) // group_size)
        return [waiting.popleft() for _ in range(min(num, len(waiting)))]

    def prefill(self, admitted: Sequence[int]) -> DecodeState:
        """Run these prompts once each, and give every member of their groups a row that continues from there."""
        with span("prefill"):
            return self._prefill(
                [self.collector.request.prompts[index] for index in admitted],
                [self.collector.partials[index] for index in admitted],
            )

    def _prefill(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[PartialCompletion]]) -> DecodeState:
        group_size = len(groups[0])
        num_common = self.shared_prefix.length if self.shared_prefix else 0
        lengths = torch.tensor([len(prompt.context_ids) - num_common for prompt in prompts])
        longest = int(lengths.max())
        ids = torch.full((len(prompts), longest), self.loaded.pad_id)
        for row, prompt in enumerate(prompts):
            rest = prompt.context_ids[num_common:]
            ids[row, longest - len(rest) :] = torch.tensor(rest)
        start = longest - lengths
        positions = torch.arange(longest)[None] - start[:, None]
        attended = torch.nn.functional.pad((positions >= 0).long(), (num_common, 0), value=1)
        if self.shared_prefix is not None:
            cache = self.shared_prefix.cache(len(prompts))
        else:
            cache = DynamicCache(config=self.loaded.model.config)
        hidden = self.loaded.head.hidden(
            input_ids=ids.to(self.device),
            attention_mask=attended.to(self.device),
            position_ids=(num_common + positions.clamp(min=0)).to(self.device),
            memory=cache,
            use_cache=True,
        )
        self.counts.add_prompts((lengths + num_common).tolist(), group_size, num_common)
        logits = self.loaded.head.logits(hidden[:, -1]).repeat_interleave(group_size, dim=0)
        partials = [partial for group in groups for partial in group]
        as_rows = self.copies if self.shared_prefix is None else functools.partial(SharedRows, num_common=num_common)
        return DecodeState(as_rows(cache, start.to(self.device), group_size, room_of(partials)), logits, partials)

    def _decode(self, state: DecodeState) -> DecodeState | None:
        """Decode until enough rows have ended to be worth removing, and return the rest, ready to go on."""
        while True:
            token, alive = self.draw(state)
            if not alive:
                return None
            enough_ended = len(state.partials) - len(alive) >= self.limits.min_freed * len(state.partials)
            if enough_ended:
                token = state.keep(alive, token)
            self.step(state, token)
            if enough_ended:
                return state

    def draw(self, state: DecodeState) -> tuple[Int[Tensor, " row"], list[int]]:
        """Draw the next token of every row; return the tokens, and the rows that may have a further one."""
        uniform = torch.tensor(
            [partial.next_uniform for partial in state.partials], dtype=torch.float64, device=self.device
        )
        with span("draw"), torch_threads(self.pass_threads):
            drawn = draw(state.logits, uniform, self.collector.request.settings)
            self.collector.builder.record(state.partials, drawn)
        return drawn.token, [row for row, partial in enumerate(state.partials) if partial.is_live]

    def step(self, state: DecodeState, token: Int[Tensor, " row"], real: Bool[Tensor, "row 1"] | None = None) -> None:
        """Feed one token to every row, and set the logits of the next.

        Args:
            real: rows that have a next token; the others idle, and their cache stays as it is. Default: all.
        """
        rows = state.rows
        self.counts.decode_steps += 1
        self.counts.decoded_rows += rows.num_rows
        self.counts.decoded_attended += rows.num_rows + int(rows.lengths.sum())
        fed = token.unsqueeze(1)
        with span("decode"), torch_threads(self.pass_threads):
            if self.fused is not None and isinstance(rows, SharedRows):
                hidden = self.fused.hidden(rows, fed, real)
            else:
                hidden = rows.hidden(self.loaded, fed, real)
            state.logits = self.loaded.head.logits(hidden[:, -1])


@dataclass(slots=True)
class DecodeState:
    """The live rows: their cache, the logits of each row's next token, and their completions so far."""

    rows: LiveRows
    logits: Float[Tensor, "row vocab"]
    partials: list[PartialCompletion]

    def joined(self, fresh: DecodeState) -> DecodeState:
        """Return this state with the rows of a fresh prefill after its own."""
        partials = self.partials + fresh.partials
        self.rows.join(fresh.rows, room=room_of(partials))
        return DecodeState(self.rows, torch.cat([self.logits, fresh.logits]), partials)

    def keep(self, rows: Sequence[int], token: Int[Tensor, " row"]) -> Int[Tensor, " kept"]:
        """Drop all other rows; return the remaining rows' tokens. Logits are those before the tokens."""
        room = room_of([self.partials[row] for row in rows])
        order = self.rows.keep(torch.tensor(rows, device=token.device), room)
        self.partials = [self.partials[row] for row in order]
        return token[order]


def room_of(partials: Sequence[PartialCompletion]) -> int:
    """Return the columns that the longest unfinished completion may still need in this turn."""
    return max(partial.num_left for partial in partials)

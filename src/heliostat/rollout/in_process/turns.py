"""Decode completions of several turns: rows leave while their environment works, and come back with their cache.

    rows whose turns have ended   leave with their cache | environments work | come back: a chunk behind the cache
    the other rows                decode                 | decode            | decode, together with them

A row whose turn has ended leaves once enough others have, so that the rest decodes in a smaller batch. The rows that
wait come back once they are half as many as the live ones: the last sampled token of each and the reply to it are fed
as one chunk behind its cache, so no token is computed twice. A worker's prompts are divided into cohorts: where all
rows of one wait, another is decoded.

Which rows are decoded together follows from their tokens alone, never from the time that an environment takes. A run
that is resumed therefore repeats it bit for bit.

Left out: models whose memory cannot be taken apart (``plain`` runs their text again), and the content of replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from heliostat.rollout.completions import PartialCompletion
from heliostat.rollout.in_process.decode_worker import DecodeState, DecodeWorker, room_of
from heliostat.rollout.in_process.rows import LiveRows
from heliostat.spans import span

NUM_COHORTS, MIN_ROWS = 2, 64
"""Cohorts in progress at once, of so many rows at least: a pass over fewer rows costs more for each."""

MIN_WAITING = 0.5
"""Rows that wait come back once they are so many times the live ones: earlier, the batch is copied too often; later, it
is too small."""


@dataclass(slots=True)
class Parked:
    """Rows that wait: their cache, without the last sampled token of each, and their completions."""

    rows: LiveRows
    partials: list[PartialCompletion]


@dataclass(slots=True)
class TurnWorker:
    """A worker that decodes a share of a request's prompts, turn by turn, to the ends of their completions."""

    decoder: DecodeWorker

    @torch.inference_mode()
    def run(self, stopped: Callable[[], bool]) -> None:
        """Decode until all completions have ended, or ``stopped`` returns true."""
        fresh = self._cohorts()
        parked: deque[list[Parked]] = deque()
        while (fresh or parked) and not stopped():
            if fresh and len(parked) < NUM_COHORTS:
                state: DecodeState | None = self.decoder.prefill(fresh.popleft())
            else:
                state = self._resume(parked.popleft(), complete=True)
            if state is not None and (pieces := self._decode(state)):
                parked.append(pieces)
            self.decoder.collector.collect()

    def _cohorts(self) -> deque[Sequence[int]]:
        """Divide the prompts into ``NUM_COHORTS``: fewer if they are small, and more if a batch holds fewer rows."""
        prompts, group_size = self.decoder.collector.request.prompts, self.decoder.collector.request.group_size
        per_batch = max(1, self.decoder.limits.max_rows // group_size)
        size = min(per_batch, max(-(-len(prompts) // NUM_COHORTS), -(-MIN_ROWS // group_size)))
        numbers = range(len(prompts))
        return deque(numbers[first : first + size] for first in numbers[::size])

    def _decode(self, state: DecodeState) -> list[Parked]:
        """Decode until every row has ended or waits; return the waiting ones."""
        pieces: list[Parked] = []
        while True:
            token, alive = self.decoder.draw(state)
            num_gone = len(state.partials) - len(alive)
            if not alive or num_gone >= self.decoder.limits.min_freed * len(state.partials):
                waiting = [row for row, partial in enumerate(state.partials) if partial.pending is not None]
                if len(waiting) == len(state.partials):
                    return [*pieces, Parked(state.rows, state.partials)]
                if waiting:
                    rows = state.rows.taken(torch.tensor(waiting, device=token.device))
                    pieces.append(Parked(rows, [state.partials[row] for row in waiting]))
                if not alive:
                    return pieces
                token, alive = state.keep(alive, token), list(range(len(alive)))
                if sum(len(piece.partials) for piece in pieces) >= MIN_WAITING * len(alive):
                    self.decoder.step(state, token)
                    state, pieces = self._with(state, self._resume(pieces, complete=False)), []
                    continue
            real = torch.zeros_like(token, dtype=torch.bool)
            real[alive] = True
            self.decoder.step(state, token, real[:, None])

    def _with(self, state: DecodeState, back: DecodeState | None) -> DecodeState:
        """Return live rows together with those that came back to them."""
        if back is None:
            return state
        partials, logits = state.partials + back.partials, torch.cat([state.logits, back.logits])
        state.rows.reunite([back.rows], room_of(partials), complete=True)
        return DecodeState(state.rows, logits, partials)

    def _resume(self, pieces: Sequence[Parked], complete: bool) -> DecodeState | None:
        """Wait for the replies to all parked rows, and feed those that go on; ``None`` if none does.

        Args:
            complete: whether no row of their cohort is live.
        """
        partials = [partial for piece in pieces for partial in piece.partials]
        builder = self.decoder.collector.builder
        with span("environment"):
            replies = [builder.go_on(partial) for partial in partials]
        stays = [partial.stop_reason is None for partial in partials]
        if not any(stays):
            return None
        # The last sampled token has not been fed yet: it and the reply are what the cache does not know.
        chunks = [[*partial.token_ids[-1 - len(reply) :]] for partial, reply in zip(partials, replies, strict=True)]
        going_on = [row for row, stay in enumerate(stays) if stay]
        room = max(len(chunks[row]) for row in going_on) + room_of([partials[row] for row in going_on])
        rows, *others = (piece.rows for piece in pieces)
        rows.reunite(others, room, complete)
        order = rows.keep(torch.tensor(going_on, device=self.decoder.device), room)
        chunks, partials = [chunks[row] for row in order], [partials[row] for row in order]
        with span("prefill"):
            return DecodeState(rows, self._read(rows, chunks), partials)

    def _read(self, rows: LiveRows, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feed every row its chunk, padded on the left, and return the logits after it."""
        width, device = max(map(len, chunks)), self.decoder.device
        loaded, counts = self.decoder.loaded, self.decoder.counts
        ids = torch.tensor([[loaded.pad_id] * (width - len(chunk)) + [*chunk] for chunk in chunks], device=device)
        lengths = torch.tensor([len(chunk) for chunk in chunks], device=device)
        real = torch.arange(width, device=device)[None] >= width - lengths[:, None]
        counts.add_replies(rows.lengths.tolist(), lengths.tolist())
        hidden = rows.hidden(loaded, ids, real)
        return loaded.head.logits(hidden[:, -1])

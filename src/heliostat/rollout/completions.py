"""Completions while they are being decoded: their random streams, their tokens so far, and the rules that end them.

A completion with a dialogue has several turns. When a turn ends by itself, the dialogue is asked at once and the
completion waits; ``go_on`` appends the reply. Ids only append, and only sampled ids have log-probabilities. A turn that
is cut by its budget ends the completion, so half an action is never run.

Left out: where the logits come from (the engines).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from heliostat.arguments import texts
from heliostat.models import LoadedModel, decode, decode_to_stop
from heliostat.rollout.request import Dialogue, Reply, SampleRequest
from heliostat.rollout.sampling import Draw, completion_seed, uniforms
from heliostat.types import Completion, Group, Prompt, StopReason, Turn

_TICK_S = 0.05
"""A wait for an environment notices this late, at most, that another thread stopped the engine."""


@dataclass(slots=True)
class PartialCompletion:
    """A completion that is being decoded.

    Attributes:
        stream: uniform numbers in [0, 1), one per token that the completion may have; sampled token ``t`` uses number
            ``t``, however many tokens of an environment stand before it.
        out_of_room: the reason it ends for when it has as many tokens as it may have.
        prefix_ids: tokens of the turn that were given and are continued.
        logp, entropy: of every sampled token, in nats.
        dialogue: the other side of a completion of several turns.
        turn_start: the place in ``token_ids`` where the current turn begins.
        turns: the turns that have ended and were answered or cut.
        pending: the reply that the completion waits for.
    """

    stream: Float[np.ndarray, " token"]
    seed: int
    out_of_room: StopReason
    prefix_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None
    dialogue: Dialogue | None = None
    turn_start: int = 0
    turns: list[Turn] = field(default_factory=list)
    pending: Future[Reply] | None = None

    @property
    def room(self) -> int:
        """The number of tokens that the completion may still have, of the environment too."""
        return len(self.stream) - len(self.token_ids)

    @property
    def num_left(self) -> int:
        """The number of tokens that may still follow in this turn."""
        if self.dialogue is None:
            return self.room
        return min(self.room, self.dialogue.max_turn_tokens - len(self.token_ids) + self.turn_start)

    @property
    def next_uniform(self) -> float:
        """The random number that decides the next token; 0 once no token may follow."""
        return float(self.stream[len(self.logp)]) if self.num_left else 0.0

    @property
    def is_live(self) -> bool:
        """Whether the next token may be sampled: neither ended nor waiting."""
        return self.stop_reason is None and self.pending is None

    def stop(self, reason: StopReason) -> None:
        """End the completion, and release the other side."""
        self.stop_reason = reason
        if self.dialogue is not None:
            self.dialogue.end()


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """When a completion ends, and how many are decoded at once.

    Attributes:
        max_new_tokens: of a completion.
        max_rows: completions in one forward pass.
        stop: strings that end a completion.
        min_freed: finished rows are dropped once they are this share of the batch: copying the cache costs more than a
            few idle rows.
    """

    max_new_tokens: int
    max_rows: int = 512
    stop: tuple[str, ...] = ()
    min_freed: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(texts(self.stop, "stop")))


class SamplingStopped(Exception):
    """Another thread stopped the engine: nobody wants the result any more."""


class CompletionBuilder:
    """Begins, extends and finishes completions for one model under one set of limits.

    Attributes:
        stopped: an event that any thread may set; decoding then ends at the next token.
    """

    def __init__(self, loaded: LoadedModel, limits: DecodeLimits) -> None:
        self.loaded = loaded
        self.limits = limits
        self.stopped = threading.Event()

    def begin(self, request: SampleRequest) -> list[list[PartialCompletion]]:
        """Begin every prompt's group; a prompt that comes twice gets different random streams.

        Raises:
            ValueError: a prompt fills the model's context.
        """
        seen: Counter[tuple[str, str]] = Counter()
        groups = []
        for index, prompt in enumerate(request.prompts):
            occurrence = seen[prompt.group_key]
            seen[prompt.group_key] += 1
            where = (request.seed, *prompt.group_key, occurrence)
            group = [self._begin(prompt, completion_seed(*where, member)) for member in range(request.group_size)]
            if request.dialogues is not None:
                for partial, dialogue in zip(group, request.dialogues[index], strict=True):
                    partial.dialogue = dialogue
            groups.append(group)
        return groups

    def _begin(self, prompt: Prompt, own_seed: int) -> PartialCompletion:
        room = self.loaded.context_length - len(prompt.context_ids)
        if room < 1:
            raise ValueError(
                f"problem {prompt.problem.problem_id}: its {len(prompt.context_ids)} prompt tokens leave no room in "
                f"the model's context of {self.loaded.context_length}"
            )
        budget = min(self.limits.max_new_tokens, room)
        out_of_room = StopReason.MAX_TOKENS if budget == self.limits.max_new_tokens else StopReason.CONTEXT_FULL
        return PartialCompletion(uniforms(own_seed, budget), own_seed, out_of_room, prompt.prefix_ids)

    def record(self, partials: Sequence[PartialCompletion], drawn: Draw) -> None:
        """Append one token to every completion that has not ended.

        Raises:
            SamplingStopped: ``stopped`` is set.
        """
        if self.stopped.is_set():
            raise SamplingStopped
        tokens, logps, entropies = drawn.on_host()
        for partial, token, logp, entropy in zip(partials, tokens, logps, entropies, strict=True):
            if not partial.is_live:
                continue
            partial.token_ids.append(token)
            partial.logp.append(logp)
            partial.entropy.append(entropy)
            reason = self._turn_end(partial, token)
            if reason is not None:
                self.end_turn(partial, reason)

    def _turn_end(self, partial: PartialCompletion, token: int) -> StopReason | None:
        """Return the reason why the current turn ends after ``token``; of a single turn, the completion's."""
        if token in self.loaded.eos_ids:
            return StopReason.EOS
        if self.limits.stop:
            # A stop string spans at most as many tokens as it has bytes; only that tail can have completed one.
            tail = max(len(text.encode()) for text in self.limits.stop) + 1
            if self.holds_stop_string(partial.token_ids[max(partial.turn_start, len(partial.token_ids) - tail) :]):
                return StopReason.STOP_STRING
        return partial.out_of_room if partial.num_left == 0 else None

    def end_turn(self, partial: PartialCompletion, reason: StopReason) -> None:
        """End the current turn: ask the other side if the turn ended by itself, else end the completion."""
        if partial.dialogue is None:
            partial.stop(reason)
        elif reason in (StopReason.EOS, StopReason.STOP_STRING):
            partial.pending = partial.dialogue.reply(partial.token_ids[partial.turn_start :], partial.room)
        else:
            partial.turns.append(Turn(partial.turn_start, len(partial.token_ids)))
            partial.stop(StopReason.TURN_TRUNCATED if partial.room else partial.out_of_room)

    def go_on(self, partial: PartialCompletion) -> Sequence[int]:
        """Wait for the reply to the last turn and append it; or end the completion, if it is over or has no room.

        Returns:
            The reply's token ids; empty if the completion has ended.

        Raises:
            SamplingStopped: ``stopped`` is set.
        """
        assert partial.pending is not None
        while not wait([partial.pending], _TICK_S).done:
            if self.stopped.is_set():
                raise SamplingStopped
        reply = partial.pending.result()
        partial.pending = None
        partial.turns.append(replace(reply.turn, start=partial.turn_start, end=len(partial.token_ids)))
        if reply.stop_reason is not None:
            partial.stop(reply.stop_reason)
        elif len(reply.token_ids) >= partial.room:
            partial.stop(partial.out_of_room)
        else:
            partial.token_ids += reply.token_ids
            partial.turn_start = len(partial.token_ids)
            return reply.token_ids
        return ()

    def holds_stop_string(self, token_ids: Sequence[int]) -> bool:
        """Return whether the text of these tokens contains one of the strings that end a completion."""
        text = decode(self.loaded, token_ids)
        return any(stop in text for stop in self.limits.stop)

    def finish(self, partial: PartialCompletion) -> Completion:
        """Return an ended completion with its text, which ends before the stop string; its token ids do not.

        A continued prefix is part of the text, since verifiers judge the whole turn. Of several turns, the text is the
        last one's.
        """
        assert partial.stop_reason is not None
        given, said = partial.prefix_ids, partial.token_ids
        if partial.turns:
            given, said = (), said[partial.turns[-1].start : partial.turns[-1].end]
        has_stop_string = partial.stop_reason is StopReason.STOP_STRING or bool(partial.turns)
        text = decode_to_stop(self.loaded, said, self.limits.stop if has_stop_string else (), given)
        return Completion(
            token_ids=tuple(partial.token_ids),
            logp_gen=np.asarray(partial.logp, dtype=np.float32),
            entropy=np.asarray(partial.entropy, dtype=np.float32),
            stop_reason=partial.stop_reason,
            text=text,
            seed=partial.seed,
            turns=tuple(partial.turns),
        )


@dataclass(slots=True)
class GroupCollector:
    """Hands out each group of a request once its completions have all ended, while others are still being decoded."""

    builder: CompletionBuilder
    request: SampleRequest
    partials: Sequence[Sequence[PartialCompletion]]
    _collected: dict[int, Group] = field(default_factory=dict)

    def collect(self) -> None:
        """Finish the groups that have ended since the last call, and report each to ``request.on_group``."""
        for index, (prompt, partials) in enumerate(zip(self.request.prompts, self.partials, strict=True)):
            if index in self._collected or any(partial.stop_reason is None for partial in partials):
                continue
            completions = tuple(self.builder.finish(partial) for partial in partials)
            group = self._collected[index] = Group(prompt, completions, policy_step=self.request.policy_step)
            if self.request.on_group is not None:
                self.request.on_group(index, group)

    def groups(self) -> list[Group]:
        """Return all groups, in prompt order; every completion must have ended."""
        self.collect()
        return [self._collected[index] for index in range(len(self.request.prompts))]

"""Completions while they are being decoded: their random streams, their tokens so far, and the rules that end them.

Left out: where the logits come from (the engines).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from heliostat.models import LoadedModel, decode
from heliostat.rollout.request import SampleRequest
from heliostat.rollout.sampling import Draw, completion_seed, uniforms
from heliostat.types import Completion, Group, Prompt, StopReason


@dataclass(slots=True)
class PartialCompletion:
    """A completion that is being decoded.

    Attributes:
        stream: uniform numbers in [0, 1), one per token that the completion may have.
        out_of_room: the reason it ends for when the stream is used up.
        prefix_ids: tokens of the turn that were given and are continued.
        logp, entropy: of every token, in nats.
    """

    stream: Float[np.ndarray, " token"]
    seed: int
    out_of_room: StopReason
    prefix_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    @property
    def num_left(self) -> int:
        """The number of tokens that may still follow."""
        return len(self.stream) - len(self.token_ids)

    @property
    def next_uniform(self) -> float:
        """The random number that decides the next token; 0 once the completion has used up its stream."""
        return float(self.stream[len(self.token_ids)]) if self.num_left else 0.0


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

    def begin(self, prompts: Sequence[Prompt], group_size: int, seed: int) -> list[list[PartialCompletion]]:
        """Begin every prompt's group; a prompt that comes twice gets different random streams.

        Raises:
            ValueError: a prompt fills the model's context.
        """
        seen: Counter[tuple[str, str]] = Counter()
        groups = []
        for prompt in prompts:
            occurrence = seen[prompt.group_key]
            seen[prompt.group_key] += 1
            seeds = [completion_seed(seed, *prompt.group_key, occurrence, member) for member in range(group_size)]
            groups.append([self._begin(prompt, own_seed) for own_seed in seeds])
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
        tokens, logps, entropies = drawn.token.tolist(), drawn.logp.tolist(), drawn.entropy.tolist()
        for partial, token, logp, entropy in zip(partials, tokens, logps, entropies, strict=True):
            if partial.stop_reason is not None:
                continue
            partial.token_ids.append(token)
            partial.logp.append(logp)
            partial.entropy.append(entropy)
            partial.stop_reason = self._stop_reason(partial, token)

    def _stop_reason(self, partial: PartialCompletion, token: int) -> StopReason | None:
        if token in self.loaded.eos_ids:
            return StopReason.EOS
        if self.limits.stop:
            # A stop string spans at most as many tokens as it has bytes; only that tail can have completed one.
            tail = max(len(text.encode()) for text in self.limits.stop) + 1
            if self.holds_stop_string(partial.token_ids[-tail:]):
                return StopReason.STOP_STRING
        return partial.out_of_room if partial.num_left == 0 else None

    def holds_stop_string(self, token_ids: Sequence[int]) -> bool:
        """Return whether the text of these tokens contains one of the strings that end a completion."""
        text = decode(self.loaded, token_ids)
        return any(stop in text for stop in self.limits.stop)

    def finish(self, partial: PartialCompletion) -> Completion:
        """Return an ended completion with its text, which ends before the stop string; its token ids do not.

        A continued prefix is part of the text, since verifiers judge the whole turn.
        """
        assert partial.stop_reason is not None
        given = decode(self.loaded, partial.prefix_ids) if partial.prefix_ids else ""
        text = decode(self.loaded, [*partial.prefix_ids, *partial.token_ids])
        if partial.stop_reason is StopReason.STOP_STRING:
            places = (text.find(stop, len(given)) for stop in self.limits.stop)
            text = text[: min((place for place in places if place >= 0), default=len(text))]
        return Completion(
            token_ids=tuple(partial.token_ids),
            logp_gen=np.asarray(partial.logp, dtype=np.float32),
            entropy=np.asarray(partial.entropy, dtype=np.float32),
            stop_reason=partial.stop_reason,
            text=text,
            seed=partial.seed,
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

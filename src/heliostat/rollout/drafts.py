"""One completion while it is being written: its random stream, what was drawn so far, and when it ends.

Left out: where the logits come from (the engines).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from heliostat.models import LoadedModel, decode
from heliostat.rollout.sampling import Draw, completion_seed, uniforms
from heliostat.types import Completion, Group, Prompt, StopReason


@dataclass(slots=True)
class Draft:
    """One completion being written."""

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
        """Tokens this completion may still take."""
        return len(self.stream) - len(self.token_ids)

    @property
    def next_uniform(self) -> float:
        """The random number that decides the next token; arbitrary once the completion has ended."""
        return float(self.stream[len(self.token_ids)]) if self.num_left else 0.0


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """When a completion ends, and how many are decoded at once."""

    max_new_tokens: int
    max_rows: int = 512
    stop: tuple[str, ...] = ()
    min_freed: float = 0.25
    """Finished rows wait until this share of the batch has ended: copying the cache costs more than a few idle rows."""


class SamplingStopped(Exception):
    """Sampling was told, from another thread, that nobody wants its result any more."""


class Scribe:
    """Begins, extends and finishes drafts for one model under one set of limits.

    Attributes:
        stopped: set from any thread, it ends all writing at the next token.
    """

    def __init__(self, loaded: LoadedModel, limits: DecodeLimits) -> None:
        self.loaded = loaded
        self.limits = limits
        self.stopped = threading.Event()

    def begin(self, prompts: Sequence[Prompt], group_size: int, seed: int) -> list[list[Draft]]:
        """Fresh drafts for every prompt's group; a prompt that comes twice gets different random streams.

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

    def _begin(self, prompt: Prompt, own_seed: int) -> Draft:
        room = self.loaded.context_length - len(prompt.context_ids)
        if room < 1:
            raise ValueError(
                f"problem {prompt.problem.problem_id}: its {len(prompt.context_ids)} prompt tokens leave no room in "
                f"the model's context of {self.loaded.context_length}"
            )
        budget = min(self.limits.max_new_tokens, room)
        out_of_room = StopReason.MAX_TOKENS if budget == self.limits.max_new_tokens else StopReason.CONTEXT_FULL
        return Draft(uniforms(own_seed, budget), own_seed, out_of_room, prompt.prefix_ids)

    def record(self, drafts: Sequence[Draft], drawn: Draw) -> None:
        """Append one token to every draft that has not ended.

        Raises:
            SamplingStopped: ``stopped`` is set.
        """
        if self.stopped.is_set():
            raise SamplingStopped
        tokens, logps, entropies = drawn.token.tolist(), drawn.logp.tolist(), drawn.entropy.tolist()
        for draft, token, logp, entropy in zip(drafts, tokens, logps, entropies, strict=True):
            if draft.stop_reason is not None:
                continue
            draft.token_ids.append(token)
            draft.logp.append(logp)
            draft.entropy.append(entropy)
            draft.stop_reason = self._stop_reason(draft, token)

    def _stop_reason(self, draft: Draft, token: int) -> StopReason | None:
        if token in self.loaded.eos_ids:
            return StopReason.EOS
        if self.limits.stop:
            # A stop string spans at most as many tokens as it has bytes; only that tail can have completed one.
            tail = max(len(text.encode()) for text in self.limits.stop) + 1
            if self.holds_stop_string(draft.token_ids[-tail:]):
                return StopReason.STOP_STRING
        return draft.out_of_room if draft.num_left == 0 else None

    def holds_stop_string(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of these tokens contains one of the strings that end a completion."""
        text = decode(self.loaded, token_ids)
        return any(stop in text for stop in self.limits.stop)

    def finish(self, draft: Draft) -> Completion:
        """The completion an ended draft became; its text ends before the stop string, its token ids do not.

        A continued prefix is part of the text, since it is the whole turn that verifiers judge.
        """
        assert draft.stop_reason is not None
        given = decode(self.loaded, draft.prefix_ids) if draft.prefix_ids else ""
        text = decode(self.loaded, [*draft.prefix_ids, *draft.token_ids])
        if draft.stop_reason is StopReason.STOP_STRING:
            places = (text.find(stop, len(given)) for stop in self.limits.stop)
            text = text[: min((place for place in places if place >= 0), default=len(text))]
        return Completion(
            token_ids=tuple(draft.token_ids),
            logp_gen=np.asarray(draft.logp, dtype=np.float32),
            entropy=np.asarray(draft.entropy, dtype=np.float32),
            stop_reason=draft.stop_reason,
            text=text,
            seed=draft.seed,
        )


Announce = Callable[[int, Group], object]
"""Takes a group's index and the group, as soon as its last completion has ended."""


@dataclass(slots=True)
class Harvest:
    """Groups whose drafts have all ended, handed out while the others are still being decoded.

    Attributes:
        announce: told of every group once, so that judging it can begin.
    """

    scribe: Scribe
    prompts: Sequence[Prompt]
    drafts: Sequence[Sequence[Draft]]
    policy_step: int
    announce: Announce | None
    _gathered: dict[int, Group] = field(default_factory=dict)

    def gather(self) -> None:
        """Finish and announce what has ended since the last call."""
        for index, (prompt, drafts) in enumerate(zip(self.prompts, self.drafts, strict=True)):
            if index in self._gathered or any(draft.stop_reason is None for draft in drafts):
                continue
            completions = tuple(self.scribe.finish(draft) for draft in drafts)
            group = self._gathered[index] = Group(prompt, completions, policy_step=self.policy_step)
            if self.announce is not None:
                self.announce(index, group)

    def groups(self) -> list[Group]:
        """All groups, in prompt order; every draft must have ended."""
        self.gather()
        return [self._gathered[index] for index in range(len(self.prompts))]

"""The data types of one training step, without computation.

    Problem -> Prompt -> Completion -> Verdict -> Group -> Batch -> (loss, gradient) -> metrics

Data flows left to right only. A completion stays a *ragged list of token ids* until the moment before a forward pass,
so that no type in this file involves padding. Training uses token ids alone; text is for people and verifiers.

Axis names used in tensor annotations throughout the project:
    group       prompts of one step, each with its completions
    completion  the completions of one group
    sequence    all completions of a (mini-, micro-) batch, concatenated over groups
    token       all *sampled* tokens of a (mini-, micro-) batch, concatenated over sequences; tokens of prompts,
                prefixes and environments never appear on this axis, so they can never be scored
    vocab       the vocabulary

Left out: model weights, optimizer state, and data of single algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from heliostat.cards import Card, brief, clipped

FloatArray = NDArray[np.float32]
Message = Mapping[str, Any]  # "role", a text "content", and other keys that templates read, like "tool_calls"

SHOWN = 8
"""Completions in the card of a group."""


class StopReason(StrEnum):
    """The reason why a completion ended."""

    EOS = "eos"  # the model produced an end-of-sequence token (kept as the last token, and scored)
    STOP_STRING = "stop_string"  # the decoded text contains one of the recipe's stop strings
    MAX_TOKENS = "max_tokens"  # the completion budget was used up: a truncated answer
    CONTEXT_FULL = "context_full"  # the model's context window was used up: a truncated answer
    TURN_TRUNCATED = "turn_truncated"  # a turn used up its budget, so its half-written action was never run
    OUT_OF_TURNS = "out_of_turns"  # the episode's budget of turns was used up
    ENVIRONMENT_DONE = "environment_done"  # the environment ended the episode
    ENVIRONMENT_FAILED = "environment_failed"  # the environment failed: the completion is not scored

    @property
    def truncated(self) -> bool:
        """Whether the completion was truncated before the model finished."""
        return self in (
            StopReason.MAX_TOKENS,
            StopReason.CONTEXT_FULL,
            StopReason.TURN_TRUNCATED,
            StopReason.OUT_OF_TURNS,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Problem(Card):
    """A problem to solve, independent of any model.

    Attributes:
        problem_id: stable and unique within a run; traces, evaluations and paired comparisons are keyed by it.
        task: name of the task it came from; results are reported per task.
        prompt: plain text, or chat messages with ``role`` and ``content``.
        columns: all other columns of the data row, passed to verifiers by name and never interpreted here.
        answer: the oracle answer where the task has one, else ``None``.
        solution: a worked solution that ends in the answer, for supervised warm starts, else ``None``.
        also_right: further right answers, where rows with the same prompt give several.
        turns: a worked conversation after the prompt, from its first assistant turn to its last, else empty.
        markup: parts of a plain-text prompt, as (start, end), that come from the recipe's template and not from the
            data. Only there do control tokens like ``<|im_end|>`` act as such.
        place: source of the problem, for messages: ``problems.jsonl, line 7``.
    """

    problem_id: str
    task: str
    prompt: str | tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    solution: str | None = None
    also_right: tuple[str, ...] = ()
    turns: tuple[Message, ...] = ()
    markup: tuple[tuple[int, int], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def described(self) -> str:
        """The problem's name in messages, with its place where it has one."""
        name = f"problem '{self.problem_id}'"
        return f"{name} ({self.place})" if self.place else name

    @property
    def question(self) -> str:
        """The question: the last user turn as text."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a stored solution that a prompt gives away.

    Attributes:
        kind: the form in which it is given: ``prefix``, ``hint`` or ``unrelated`` (``prefix.mode``).
        num_tokens: its length.

    **Limits** ``Cut.parse(str(cut)) == cut``, and an empty text is no cut.
    """

    kind: str
    num_tokens: int

    def __str__(self) -> str:
        """Return the form that trace banks and checkpoints store, ``prefix:12``."""
        return f"{self.kind}:{self.num_tokens}"

    @classmethod
    def parse(cls, text: str) -> Cut | None:
        """Read the stored form.

        Raises:
            ValueError: the text is not one.
        """
        kind, colon, num_tokens = text.rpartition(":")
        if not text:
            return None
        if not colon or not num_tokens.isdecimal():
            raise ValueError(f"{text!r:.40} is no cut; it looks like 'prefix:12'")
        return cls(kind, int(num_tokens))


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a model in an environment: the span of its sampled tokens, and the environment's answer to it.

    Attributes:
        start, end: first sampled token and the one after the last, as places in a completion's ``token_ids``. Tokens
            between ``end`` and the next turn's ``start`` are the environment's.
        reward: the environment's reward for this turn; ``None``: it gave none.
        success: whether the episode succeeded, if the environment says so in this turn.
        num_calls: tool calls in the turn.
        num_errors: calls among them that were refused or failed.
        is_invalid: whether the environment could not understand the turn.
    """

    start: int
    end: int
    reward: float | None = None
    success: bool | None = None
    num_calls: int = 0
    num_errors: int = 0
    is_invalid: bool = False

    @property
    def num_tokens(self) -> int:
        """Sampled tokens."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, repr=False)
class Prompt(Card):
    """A problem as one model's token ids, optionally continued by an unfinished assistant turn.

    Attributes:
        token_ids: the rendered prompt (chat template applied), tokenised exactly once.
        prefix_ids: the start of an assistant turn to be continued, or whole turns with the environment's answers;
            conditioned on, never scored.
        cut: the prefix that the prompt gives away, if any; completions are compared only with completions of the
            same (problem, cut).
        prefix_turns: the turns within ``prefix_ids``, to be replayed into the environment before sampling.
        shown: the text or messages of ``token_ids``, where an environment's first observation or its tools belong to
            them, with the tools as text; ``None``: the problem's own prompt, or not known any more.
    """

    problem: Problem
    token_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...] = ()
    cut: Cut | None = None
    prefix_turns: tuple[Turn, ...] = ()
    shown: str | tuple[Message, ...] | None = None

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The tokens on which the model is conditioned when it samples its first token."""
        return self.token_ids + self.prefix_ids

    @property
    def group_key(self) -> tuple[str, str]:
        """The key of the group whose baseline this prompt's completions share."""
        return (self.problem.problem_id, str(self.cut or ""))


@dataclass(frozen=True, slots=True, repr=False)
class Completion(Card):
    """A completion sampled by one policy after one prompt; in an environment, a whole trajectory.

    Attributes:
        token_ids: the continuation of the prompt: sampled ids, including end-of-sequence tokens, and between the turns
            of a trajectory the environment's ids.
        logp_gen: the sampler's log-probability of each sampled token at the sampling temperature, in nats.
        entropy: entropy of the distribution each sampled token was drawn from, in nats.
        text: decoded assistant turn without special tokens, including a continued prefix, as verifiers see it; of a
            trajectory, its last turn.
        seed: seed of this completion's own random stream.
        turns: the turns of a trajectory, in order; empty: one turn, all of it sampled.

    **Limits** Without ``turns``, ``sampled_ids`` is ``token_ids``.
    """

    token_ids: tuple[int, ...]
    logp_gen: FloatArray
    entropy: FloatArray
    stop_reason: StopReason
    text: str
    seed: int = 0
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.num_sampled == len(self.logp_gen) == len(self.entropy):
            raise ValueError(
                f"a completion needs one log-probability and one entropy per sampled token, got {self.num_sampled} "
                f"tokens, {len(self.logp_gen)} log-probabilities and {len(self.entropy)} entropies"
            )
        ends = (0, *(turn.end for turn in self.turns))
        starts = (*(turn.start for turn in self.turns), len(self.token_ids))
        if any(start < end for start, end in zip(starts, ends, strict=True)):
            raise ValueError(f"the turns of a completion overlap, or reach beyond its {len(self.token_ids)} tokens")

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The spans of sampled tokens, as (start, end) in ``token_ids``."""
        return tuple((turn.start, turn.end) for turn in self.turns) or ((0, len(self.token_ids)),)

    @property
    def num_sampled(self) -> int:
        """The number of sampled tokens, which are the scored ones."""
        return sum(end - start for start, end in self.spans)

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The sampled ids, in order."""
        return tuple(token for start, end in self.spans for token in self.token_ids[start:end])


@dataclass(frozen=True, slots=True, repr=False)
class Verdict(Card):
    """The verifiers' judgement of one completion.

    Attributes:
        reward: the weighted sum that training uses.
        success: whether every verifier gave a score of 1.0; independent of shaped reward.
        scores: each verifier's own score by name.
        failure: one sentence on the failure of a verifier or judge on this completion; empty without one.
        is_scored: whether there is a reward; a completion whose judge failed has none, and leaves its group.
    """

    reward: float
    success: bool
    scores: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    is_scored: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class Group(Card):
    """All completions of one prompt, sampled by one policy, with their verdicts after verification.

    Attributes:
        policy_step: the step of the weights that sampled the group (its age is ``step - policy_step``).
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...] = ()
    policy_step: int = 0

    def card_rows(self) -> list[tuple[str, str]]:
        marks = [f"reward {verdict.reward:.4g}" for verdict in self.verdicts] or ["not judged"] * len(self.completions)
        asked = self.prompt.problem.prompt
        prompt = asked if isinstance(asked, str) else brief(asked)
        shown = list(zip(marks, (clipped(one.text, 500) for one in self.completions), strict=True))
        more = [("", f"{len(shown) - SHOWN} more")] if len(shown) > SHOWN else []
        return [("prompt", clipped(prompt, 500)), *shown[:SHOWN], *more]

    @property
    def is_empty(self) -> bool:
        """Return whether no completion could be scored, because its environment or judge failed."""
        return not self.completions

    def scored(self) -> Group:
        """Return the group without the completions that have no reward."""
        if all(verdict.is_scored for verdict in self.verdicts):
            return self
        kept = [pair for pair in zip(self.completions, self.verdicts, strict=True) if pair[1].is_scored]
        return replace(
            self,
            completions=tuple(completion for completion, _ in kept),
            verdicts=tuple(verdict for _, verdict in kept),
        )

    @property
    def rewards(self) -> list[float]:
        """Rewards in completion order."""
        return [verdict.reward for verdict in self.verdicts]

    @property
    def num_tokens(self) -> int:
        """Sampled tokens in the whole group."""
        return sum(completion.num_sampled for completion in self.completions)


@dataclass(frozen=True, slots=True, repr=False)
class TrainingGroup(Card):
    """A verified group with its advantages, and the anchor's log-probabilities once computed.

    Attributes:
        advantages: per completion, from the objective's ``advantages``.
        logp_old: per completion, token log-probabilities under the policy at the start of the update phase, in the
            trainer's numerics; ``None`` until the trainer fills them in.
        logp_ref: the same under the frozen reference, for objectives that need it.
        taught: per completion, one row per token from a teacher: its log-probability, or the state that its head reads.
    """

    group: Group
    advantages: Float[Tensor, " completion"]
    logp_old: tuple[Float[Tensor, " _"], ...] | None = None
    logp_ref: tuple[Float[Tensor, " _"], ...] | None = None
    taught: tuple[Tensor, ...] | None = None

    @property
    def has_signal(self) -> bool:
        """Whether any completion of the group has an advantage other than 0."""
        return bool((self.advantages != 0).any())


@dataclass(frozen=True, slots=True, repr=False)
class Batch(Card):
    """The verified groups of one step; ``minibatches`` divides it by prompt, so that no group is split."""

    groups: tuple[TrainingGroup, ...]

    def minibatches(self, num_updates: int, order: Sequence[int]) -> list[Batch]:
        """Divide into ``num_updates`` batches of nearly equal numbers of groups, in the given ``order``.

        Raises:
            ValueError: there are fewer groups than updates.
        """
        if not 1 <= num_updates <= max(1, len(self.groups)):
            raise ValueError(f"cannot make {num_updates} updates out of {len(self.groups)} groups")
        chunks = np.array_split(np.asarray(order), num_updates)
        return [Batch(tuple(self.groups[int(index)] for index in chunk)) for chunk in chunks]


@dataclass(frozen=True, slots=True, repr=False)
class TokenBatch(Card):
    """The input of an objective: ragged sequences laid end to end, without padding, completion tokens only.

    Attributes:
        sequence: for every token, the index of the sequence it belongs to, in ``[0, num_sequences)``, sorted.
        num_tokens: tokens of each sequence (``bincount(sequence)``).
        advantage: per sequence, from the objective's own ``advantages``.
        logp_old: the trainer's log-probabilities at the start of this update phase; PMD's anchor.
        logp_gen: the sampler's own log-probabilities.
        logp_ref: a frozen reference's log-probabilities, for objectives that need them.
        group: for every sequence, a number that the completions of one prompt share, for objectives that compare them
            within the loss (``Objective.needs_whole_groups``).
    """

    sequence: Int[Tensor, " token"]
    num_tokens: Int[Tensor, " sequence"]
    advantage: Float[Tensor, " sequence"]
    logp_old: Float[Tensor, " token"]
    logp_gen: Float[Tensor, " token"]
    logp_ref: Float[Tensor, " token"] | None = None
    group: Int[Tensor, " sequence"] | None = None

    @property
    def num_sequences(self) -> int:
        """Number of completions in the batch."""
        return int(self.num_tokens.shape[0])

    def sum_by_sequence(self, values: Float[Tensor, " token"]) -> Float[Tensor, " sequence"]:
        """Sum token values per sequence (differentiable)."""
        return torch.zeros(self.num_sequences, dtype=values.dtype, device=values.device).index_add(
            0, self.sequence, values
        )


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that can be merged over micro-batches and ranks, stored as total and count."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean, or NaN where nothing was counted."""
        return self.total / self.count if self.count else float("nan")


def mean_values(means: Mapping[str, Mean]) -> dict[str, float]:
    """Divide merged means, and leave out those of nothing."""
    return {key: mean.value for key, mean in means.items() if mean.count}


@dataclass(frozen=True, slots=True, repr=False)
class LossOutput(Card):
    """The loss of one micro-batch.

    Attributes:
        loss: scalar, already divided by the step's global normaliser; sum over micro-batches to get the step's loss.
        metrics: mergeable means keyed ``area/quantity``.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Mean] = field(default_factory=dict)

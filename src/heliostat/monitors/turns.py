r"""Trajectories turn by turn: actions, calls, budgets, entropy, and the distance between two policies.

    number of a turn         1, 2, 3, and 4+ for all later ones
    log-ratio of a turn      s_k = sum_t [log pi_new(y_t) - log pi_old(y_t)] over its sampled tokens

The environment's probabilities cancel in the log-ratio of a trajectory, so it is the sum of its turns' log-ratios. It
grows with the number of sampled tokens: a temperature that suits one turn is too small for eight.

Left out: episodes that could not be scored, which are in no batch (``train.step_metrics``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from heliostat.monitors.signal import Moments, Signal
from heliostat.monitors.turn_numbers import NUMBERS, number_of
from heliostat.types import Batch, Completion, Mean, Prompt, StopReason, mean_values

SAMPLER_GAP = "agent/sampler_gap"
OUT_OF_TOKENS = frozenset({StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL})

Member = tuple[Prompt, Completion]
Action = Callable[[Sequence[int]], str]
"""The text of a turn, as its environment reads it."""


def pieces(member: Member, values: Float[np.ndarray, " token"]) -> Iterator[tuple[str, Float[np.ndarray, " _"]]]:
    """Divide values of a trajectory's sampled tokens into those of its turns, each with the turn's number.

    Turns of a prefix count, so the number is the turn's place in the episode.
    """
    prompt, completion = member
    start = 0
    for place, turn in enumerate(completion.turns, start=len(prompt.prefix_turns)):
        yield number_of(place), values[start : start + turn.num_tokens]
        start += turn.num_tokens


def by_turn(key: str, parts: Iterable[tuple[str, Float[np.ndarray, " _"]]]) -> dict[str, Mean]:
    """Average values by number of turn; the keys do not depend on the values."""
    means = {f"{key}:{number}": Mean(0.0, 0) for number in NUMBERS}
    for number, values in parts:
        means[f"{key}:{number}"] += Mean(float(values.sum(dtype=np.float64)), values.size)
    return means


def sampler_gaps(
    members: Sequence[Member], logp_train: Float[Tensor, " token"], logp_gen: Float[Tensor, " token"]
) -> dict[str, Mean]:
    """Average ``|logp_gen - logp_train|`` over tokens, by turn.

    Args:
        logp_train, logp_gen: of every sampled token of the members, laid end to end.

    **Limits** Empty for completions without turns. The mean over all turns, weighted by tokens, is the mean over all
    tokens.
    """
    if not any(completion.turns for _, completion in members):
        return {}
    gap = (logp_gen - logp_train).abs().double().cpu().numpy()
    ends = np.cumsum([completion.num_sampled for _, completion in members])[:-1]
    parts = zip(members, np.split(gap, ends), strict=True)
    return by_turn(SAMPLER_GAP, (piece for member, values in parts for piece in pieces(member, values)))


def sampler_gap_metrics(moments: Moments) -> dict[str, float]:
    """Compute the metrics of moments among which those of ``sampler_gaps`` are."""
    return mean_values({key: mean for key, mean in moments.items() if key.partition(":")[0] == SAMPLER_GAP})


def log_ratios(member: Member, log_ratio: Float[np.ndarray, " token"]) -> dict[str, Mean]:
    """Average ``|s_k|`` by turn.

    Args:
        log_ratio: ``log pi_new - log pi_old`` of every sampled token.

    **Limits** Equal policies: 0. Every token moved by ``d``: ``|d|`` times the mean number of tokens of the turn.
    """
    summed = (
        (number, np.abs(values.sum(dtype=np.float64, keepdims=True))) for number, values in pieces(member, log_ratio)
    )
    return by_turn("agent/log_ratio", summed)


@dataclass(frozen=True)
class Trajectories(Signal):
    """Turns, calls, actions and budgets of trajectories, and their entropy by turn."""

    action: Action

    def measure(self, batch: Batch) -> dict[str, Mean]:
        members = [
            (group.group.prompt, completion)
            for group in batch.groups
            for completion in group.group.completions
            if completion.turns
        ]
        turns = [turn for _, completion in members for turn in completion.turns]
        reasons = [completion.stop_reason for _, completion in members]
        num, num_turns, num_calls = len(members), len(turns), sum(turn.num_calls for turn in turns)
        num_tokens = sum(len(completion.token_ids) for _, completion in members)
        num_sampled = sum(completion.num_sampled for _, completion in members)
        entropies = (piece for member in members for piece in pieces(member, member[1].entropy))
        return {
            "agent/turns": Mean(num_turns, num),
            "agent/calls": Mean(num_calls, num),
            "agent/valid_calls": Mean(sum(turn.num_calls > turn.num_errors for turn in turns), num_turns),
            "agent/call_errors": Mean(sum(turn.num_errors for turn in turns), num_calls),
            "agent/invalid": Mean(sum(turn.is_invalid for turn in turns), num_turns),
            "agent/empty_actions": Mean(sum(self._num_empty(completion) for _, completion in members), num_turns),
            "agent/repeated_actions": Mean(sum(map(num_repeated, members)), num_turns),
            "agent/turn_truncated": Mean(sum(reason is StopReason.TURN_TRUNCATED for reason in reasons), num),
            "agent/out_of_tokens": Mean(sum(reason in OUT_OF_TOKENS for reason in reasons), num),
            "agent/out_of_turns": Mean(sum(reason is StopReason.OUT_OF_TURNS for reason in reasons), num),
            "agent/environment_tokens": Mean(num_tokens - num_sampled, num_tokens),
            **by_turn("agent/entropy", entropies),
        }

    def _num_empty(self, completion: Completion) -> int:
        return sum(not self.action(completion.token_ids[start:end]).strip() for start, end in completion.spans)


def num_repeated(member: Member) -> int:
    """Count the turns whose ids equal an earlier turn's of the same episode, its prefix included.

    **Limits** The first turn of an episode repeats nothing. One action ``m`` times: ``m - 1``.
    """
    prompt, completion = member
    seen = {prompt.prefix_ids[turn.start : turn.end] for turn in prompt.prefix_turns}
    own = [completion.token_ids[start:end] for start, end in completion.spans]
    return len(own) - len(set(own) - seen)

"""The record of a trace: one completion with all data needed to reuse it.

Token ids are the sampled ones; the text is stored too, for people, verifiers and other tokenizers.

Left out: storage (``bank``), files (``columns``, ``parquet``), and prefixes (``cuts``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from heliostat.cards import Card
from heliostat.types import FloatArray, StopReason, Turn

_TOO_LARGE = 2**63  # for SQLite's integers


@dataclass(frozen=True, slots=True, repr=False)
class TraceSource(Card):
    """The source of a trace: policy, tokenizer, sampling settings and environment.

    Attributes:
        tokenizer: fingerprint of the tokenizer whose ids these are.
        policy: fingerprint of the weights that sampled; empty if unknown.
        run, step: the run, and the optimizer step of its weights.
        temperature, max_new_tokens: sampling settings; NaN and 0 if unknown.
        verifier: names of the verifiers that gave the reward, joined by ``+``; ``claimed`` if only the file says so.
        reencoded: the ids were encoded from text at import, because the trace came from another tokenizer or as text.
        environment: name of the environment that answered; empty: none.
    """

    tokenizer: str
    policy: str = ""
    run: str = ""
    step: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 0
    verifier: str = ""
    reencoded: bool = False
    environment: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.step < _TOO_LARGE and 0 <= self.max_new_tokens < _TOO_LARGE):
            raise ValueError(
                f"a source needs step and max_new_tokens from 0 to 2^63 - 1, got {self.step} and {self.max_new_tokens}"
            )
        if self.temperature < 0:
            raise ValueError(f"a source needs a temperature of at least 0, got {self.temperature}")


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Card):
    """One completion of one prompt, judged; in an environment, a whole trajectory.

    Attributes:
        prompt_ids, prefix_ids, cut: the context it was sampled from; see ``types.Prompt``.
        completion_ids: sampled ids, with the end-of-sequence id if there was one; between turns, the environment's.
        logp_gen: the sampler's log-probability of each sampled token, in nats; empty where it was not recorded.
        text: the assistant turn as verifiers saw it, the prefix included; of a trajectory, its last turn.
        seed: of the completion's own random stream; 0 where it has none, and then equal content counts as a copy.
        flops: spent on sampling it, its share of the prompt's forward included.
        turns: the turns of a trajectory, as places in ``all_ids``; empty: one turn. Those within ``prefix_ids`` were
            given and not sampled.

    Raises:
        ValueError: no prompt or no completion, a negative id, a reward that is not a number, lengths that differ, turns
            that overlap or reach beyond the ids.

    **Limits** Without ``turns``, all of ``completion_ids`` was sampled.
    """

    problem_id: str
    task: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reward: float
    success: bool
    source: TraceSource
    text: str = ""
    prefix_ids: tuple[int, ...] = ()
    cut: str = ""
    logp_gen: FloatArray | tuple[()] = ()
    stop_reason: StopReason = StopReason.EOS
    seed: int = 0
    flops: float = 0.0
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completion_ids:
            raise ValueError("a trace needs at least one prompt token and one completion token")
        if min(self.prompt_ids) < 0 or min(self.completion_ids) < 0 or min(self.prefix_ids, default=0) < 0:
            raise ValueError("token ids cannot be negative")
        if not 0 <= self.seed < _TOO_LARGE:
            raise ValueError(f"a trace needs a seed from 0 to 2^63 - 1, got {self.seed}")
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward must be a finite number, got {self.reward}")
        if not 0 <= self.flops < math.inf:
            raise ValueError(f"flops must be a finite number of at least 0, got {self.flops}")
        self._check_turns()
        if len(self.logp_gen) not in (0, self.num_sampled):
            raise ValueError(
                "log-probabilities must be one per completion token that was sampled, or none, got "
                f"{len(self.logp_gen)} for {self.num_sampled} tokens"
            )
        if len(self.logp_gen) and not np.isfinite(self.logp_gen).all():
            raise ValueError("a log-probability is not finite")

    @property
    def all_ids(self) -> tuple[int, ...]:
        """Return the ids of the whole assistant turn or trajectory: the prefix and the continuation."""
        return self.prefix_ids + self.completion_ids

    @property
    def sampled_turns(self) -> tuple[Turn, ...]:
        """The sampled turns, as places in ``completion_ids``; empty: one turn."""
        given = len(self.prefix_ids)
        return tuple(moved(turn, -given) for turn in self.turns if turn.start >= given)

    @property
    def given_turns(self) -> tuple[Turn, ...]:
        """The turns within ``prefix_ids``."""
        return tuple(turn for turn in self.turns if turn.start < len(self.prefix_ids))

    @property
    def num_sampled(self) -> int:
        """The number of sampled tokens."""
        return sum(turn.num_tokens for turn in self.sampled_turns) if self.turns else len(self.completion_ids)

    def _check_turns(self) -> None:
        bounds = [0, *(place for turn in self.turns for place in (turn.start, turn.end)), len(self.all_ids)]
        if any(after < before for before, after in pairwise(bounds)):
            raise ValueError(f"the turns of a trace overlap, or reach beyond its {len(self.all_ids)} tokens")
        if self.turns and not self.sampled_turns:
            raise ValueError("a trace with turns needs at least one that was sampled")
        if any(turn.end > len(self.prefix_ids) for turn in self.given_turns):
            raise ValueError("a turn of a trace begins in its prefix and ends after it")
        if any(not math.isfinite(turn.reward or 0.0) for turn in self.turns):
            raise ValueError("the reward of a turn must be a finite number")
        if any(turn.num_calls < 0 or turn.num_errors < 0 for turn in self.turns):
            raise ValueError("a turn cannot have fewer than 0 calls or errors")


def moved(turn: Turn, places: int) -> Turn:
    """Return the turn at another place."""
    return replace(turn, start=turn.start + places, end=turn.end + places)

"""The record of a trace: one completion with all data needed to reuse it.

Token ids are the sampled ones; the text is stored too, for people, verifiers and other tokenizers.

Left out: storage (``bank``), files (``columns``, ``parquet``), and prefixes (``cuts``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from heliostat.types import FloatArray, StopReason


@dataclass(frozen=True, slots=True)
class TraceSource:
    """The source of a trace: policy, tokenizer and sampling settings.

    Attributes:
        tokenizer: fingerprint of the tokenizer whose ids these are.
        policy: fingerprint of the weights that sampled; empty if unknown.
        run, step: the run, and the optimizer step of its weights.
        temperature, max_new_tokens: sampling settings; NaN and 0 if unknown.
        verifier: names of the verifiers that gave the reward, joined by ``+``; ``claimed`` if only the file says so.
        reencoded: the ids were encoded from text at import, because the trace came from another tokenizer or as text.
    """

    tokenizer: str
    policy: str = ""
    run: str = ""
    step: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 0
    verifier: str = ""
    reencoded: bool = False

    def __post_init__(self) -> None:
        if self.step < 0 or self.max_new_tokens < 0 or not (self.temperature >= 0 or math.isnan(self.temperature)):
            raise ValueError(
                f"a source needs step, max_new_tokens and temperature of at least 0, got {self.step}, "
                f"{self.max_new_tokens} and {self.temperature}"
            )


@dataclass(frozen=True, slots=True)
class Trace:
    """One completion of one prompt, judged.

    Attributes:
        prompt_ids, prefix_ids, cut: the context it was sampled from; see ``types.Prompt``.
        completion_ids: sampled ids, with the end-of-sequence id if there was one.
        logp_gen: the sampler's log-probability of each sampled token, in nats; empty where it was not recorded.
        text: the assistant turn as verifiers saw it, the prefix included.
        seed: of the completion's own random stream; 0 where it has none, and then equal content counts as a copy.
        flops: spent on sampling it, its share of the prompt's forward included.

    Raises:
        ValueError: no prompt or no completion, a negative id, a reward that is not a number, lengths that differ.
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

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completion_ids:
            raise ValueError("a trace needs at least one prompt token and one completion token")
        if min(self.prompt_ids) < 0 or min(self.completion_ids) < 0 or min(self.prefix_ids, default=0) < 0:
            raise ValueError("token ids cannot be negative")
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward must be a finite number, got {self.reward}")
        if not 0 <= self.flops < math.inf:
            raise ValueError(f"flops must be a finite number of at least 0, got {self.flops}")
        if len(self.logp_gen) not in (0, len(self.completion_ids)):
            raise ValueError(
                f"log-probabilities must be one per completion token or none, got {len(self.logp_gen)} for "
                f"{len(self.completion_ids)} tokens"
            )
        if len(self.logp_gen) and not np.isfinite(self.logp_gen).all():
            raise ValueError("a log-probability is not finite")

    @property
    def turn_ids(self) -> tuple[int, ...]:
        """Return the ids of the whole assistant turn: the prefix and the sampled continuation."""
        return self.prefix_ids + self.completion_ids

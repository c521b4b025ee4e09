r"""The entropy of the policy: by task, of thoughts and answers, Rényi-2, saturation, and its drift.

    entropy      mean over tokens of H = -sum_v p_v log p_v                        recorded as each token is drawn
    Rényi-2      -log mean_t p(y_t);   E p(y) = sum_v p_v^2 for y drawn from p      unbiased inside the logarithm
    saturated    share of sampled tokens with p(y_t) > 0.99                        of those with max p > .99, within 1 %
    drift        -Cov(log p(y), A);    dH/d eta of the natural policy gradient      a leading indicator

All of it comes from the sampler's records, so it costs no pass over the vocabulary. All are at the sampling
temperature: metrics at different temperatures do not compare.

Left out: entropy of whole answers (``diversity``), and of teacher-forced text (``panel``).

References: Cui et al. 2025, arXiv 2505.22617 (entropy and covariance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from heliostat.monitors.signal import Moments, Signal
from heliostat.types import Batch, Completion, Group, Mean

SATURATED = 0.99
AnswerStart = Callable[[Group, Completion], int | None]
"""Index of the first token of a completion's answer; ``None`` if it is unknown."""


def _entropy(parts: Sequence[Float[np.ndarray, ...]]) -> Mean:
    return Mean(float(sum(part.sum(dtype=np.float64) for part in parts)), sum(len(part) for part in parts))


@dataclass(frozen=True)
class TokenEntropy(Signal):
    """Mean token entropy of each task; one number per task where there are several."""

    tasks: Sequence[str]

    def measure(self, batch: Batch) -> dict[str, Mean]:
        if len(self.tasks) < 2:
            return {}
        parts: dict[str, list[Float[np.ndarray, ...]]] = {task: [] for task in self.tasks}
        for group in batch.groups:
            parts[group.group.prompt.problem.task] += [c.entropy for c in group.group.completions]
        return {f"policy/entropy:{task}": _entropy(part) for task, part in parts.items()}


@dataclass(frozen=True)
class ThoughtAndAnswer(Signal):
    """Token entropy before and in the answer; they collapse apart, and the longer of the two hides the other."""

    answer_start: AnswerStart

    def measure(self, batch: Batch) -> dict[str, Mean]:
        thought, answer = [], []
        for group in batch.groups:
            for completion in group.group.completions:
                start = self.answer_start(group.group, completion)
                if start is not None:
                    thought.append(completion.entropy[:start])
                    answer.append(completion.entropy[start:])
        return {"policy/entropy_thought": _entropy(thought), "policy/entropy_answer": _entropy(answer)}


@dataclass(frozen=True)
class Concentration(Signal):
    """Rényi-2 entropy and the saturated share, from the probabilities of the tokens that were drawn.

    **Limits** Uniform over ``v`` tokens: Rényi-2 is ``log v``. A deterministic policy: 0, all saturated.
    """

    def measure(self, batch: Batch) -> dict[str, Mean]:
        logp = [c.logp_gen for group in batch.groups for c in group.group.completions]
        chosen = np.exp(np.concatenate(logp, dtype=np.float64)) if logp else np.zeros(0)
        return {
            "collision": Mean(float(chosen.sum()), len(chosen)),
            "policy/saturated": Mean(float((chosen > SATURATED).sum()), len(chosen)),
        }

    def finish(self, moments: Moments) -> dict[str, float]:
        collision, saturated = moments["collision"], moments["policy/saturated"]
        if not collision.count:
            return {}
        return {
            "policy/renyi2": -math.log(collision.value) if collision.value > 0 else math.inf,
            "policy/saturated": saturated.value,
        }


@dataclass(frozen=True)
class EntropyDrift(Signal):
    """``-Cov(log p, A)`` over sampled tokens: negative where the batch reinforces tokens that are likely already.

    **Limits** Advantages all 0, or all tokens equally likely: 0. Over one enumerated state it is the derivative of
    entropy along ``pi e^{eta A}`` at ``eta = 0``.
    """

    def measure(self, batch: Batch) -> dict[str, Mean]:
        sums = np.zeros(3)
        count = 0
        for group in batch.groups:
            for completion, advantage in zip(group.group.completions, group.advantages.tolist(), strict=True):
                logp, length = float(completion.logp_gen.sum(dtype=np.float64)), completion.num_sampled
                sums += (logp, advantage * length, logp * advantage)
                count += length
        return {name: Mean(float(sums[i]), count) for i, name in enumerate(("logp", "advantage", "product"))}

    def finish(self, moments: Moments) -> dict[str, float]:
        if not moments["logp"].count:
            return {}
        covariance = moments["product"].value - moments["logp"].value * moments["advantage"].value
        return {"policy/entropy_drift": -covariance}

"""From logits to one token per row, its log-probability and the entropy it was drawn from.

Each completion owns a random stream: uniform number ``t`` of seed ``k`` decides token ``t`` of completion ``k`` by
inverting the cumulative distribution. What a completion says therefore does not depend on who it shares a batch with
(up to floating point: logits of different batch shapes may differ in the last bits).

Left out: penalties, beams and constrained decoding; they sample from something else than the policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class NonFiniteLogits(RuntimeError):
    """The model no longer defines a distribution."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 means greedy (log-probabilities are then those at temperature 1).
        top_p, top_k: truncate the distribution; for evaluation only, since training needs the policy's own numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got temperature={self.temperature}, "
                f"top_p={self.top_p}, top_k={self.top_k}"
            )


def completion_seed(run_seed: int, *where: int | str) -> int:
    """Return a 63-bit seed for one completion, from the run's seed and what identifies it (step, problem, index)."""
    text = "\x1f".join(str(part) for part in (run_seed, *where))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniforms(seed: int, num: int) -> Float[np.ndarray, " num"]:
    """Return the first ``num`` numbers in [0, 1) of a completion's own stream; a prefix of any longer call."""
    return np.random.Generator(np.random.Philox(key=seed)).random(num)


@dataclass(frozen=True, slots=True)
class Draw:
    """One token per row, with its log-probability and the entropy of its distribution, in nats."""

    token: Int[Tensor, " row"]
    logp: Float[Tensor, " row"]
    entropy: Float[Tensor, " row"]

    def on_host(self) -> tuple[list[int], list[float], list[float]]:
        """Return tokens, log-probabilities and entropies as numbers."""
        # One copy, exact for ids and float32 numbers: three would wait for a GPU three times.
        columns = torch.stack([each.double() for each in (self.token, self.logp, self.entropy)])
        tokens, logps, entropies = columns.tolist()
        return [int(token) for token in tokens], logps, entropies


def draw(logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"], settings: SamplingSettings) -> Draw:
    r"""Draw a token from ``softmax(logits / T)`` for each row by inverting its cumulative distribution.

    The smallest token ``v`` with ``cdf(v) > u`` is taken, so a token of probability zero is never drawn.

    Args:
        logits: raw model outputs.
        uniform: one number in [0, 1) per row.

    Returns:
        Tokens, their log-probability under the distribution drawn from, and that distribution's entropy (nats).

    Raises:
        NonFiniteLogits: some row has no distribution to draw from.

    Limits:
        ``temperature=0``: the argmax, with the log-probability and entropy of the untempered policy.
    """
    logits = logits.float()
    if settings.temperature == 0:
        logp = torch.log_softmax(logits, dim=-1)
        token = logp.argmax(dim=-1)
        return Draw(token, _pick(logp, token), _entropy(logp, logp.exp()))
    tempered = logits if settings.temperature == 1 else logits / settings.temperature  # saves a pass over them
    logp = torch.log_softmax(_truncate(tempered, settings), dim=-1)
    probs = logp.exp()
    token = _inverted(probs, uniform)
    return Draw(token, _pick(logp, token), _entropy(logp, probs))


BLOCK = 256
"""Tokens whose probabilities are added up before any of them is looked at: a cumulative sum of all of a large
vocabulary would take as long as its logits."""


def _inverted(probs: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return the smallest token of each row whose cumulative probability is above its uniform number."""
    vocab = probs.shape[1]
    whole = vocab - vocab % BLOCK
    blocks = torch.unflatten(probs[:, :whole], 1, (-1, BLOCK)), probs[:, whole:].unsqueeze(1)
    # Double precision: over 50,000 tokens, float32 sums misplace boundaries by more than rare tokens weigh.
    ends = torch.cat([part.sum(dim=-1, dtype=torch.float64) for part in blocks], dim=1).cumsum(dim=-1)
    total = ends[:, -1]
    if not bool(torch.isfinite(total).all()):
        raise NonFiniteLogits(
            "the model's logits are not finite, so nothing can be sampled from it; its weights are broken (a lower "
            "optimizer.lr usually helps)"
        )
    target = uniform.double() * total
    block = _first_above(ends, target)
    begins = torch.nn.functional.pad(ends, (1, 0)).gather(1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=probs.device)
    inside = probs.gather(1, tokens.clamp(max=vocab - 1)).double().masked_fill(tokens >= vocab, 0.0).cumsum(dim=-1)
    return (block * BLOCK + _first_above(inside, target - begins.squeeze(1))).squeeze(1)


def _first_above(cdf: Float[Tensor, "row n"], target: Float[Tensor, " row"]) -> Int[Tensor, "row 1"]:
    """Return the first place where the cumulative sum is above the target, which rounding may put past its end."""
    # Strictly below the total, whatever rounding did: the last place with any probability is then always found.
    total = cdf[:, -1]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target.unsqueeze(1), right=True)


def _pick(logp: Tensor, token: Tensor) -> Tensor:
    return logp.gather(1, token.unsqueeze(1)).squeeze(1)


def _entropy(logp: Tensor, probs: Tensor) -> Tensor:
    """Return the entropy of each row; overwrites ``logp``."""
    # A token that is cut off, or that the model itself excludes, adds 0 and not 0 times -inf.
    entropy: Tensor = -torch.linalg.vecdot(probs, logp.clamp_(min=torch.finfo(logp.dtype).min))
    return entropy


def _truncate(logits: Tensor, settings: SamplingSettings) -> Tensor:
    if settings.top_k > 0:
        kth = logits.topk(min(settings.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if settings.top_p < 1:
        sorted_logits, order = logits.sort(dim=-1, descending=True)
        before = sorted_logits.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0.0  # the most likely token always stays
        cut = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= settings.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits

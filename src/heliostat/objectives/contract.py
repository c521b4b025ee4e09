"""The contract every objective keeps: advantages, one global denominator, a loss, and its metrics.

    grad loss = -(sum_t coefficient_t * grad logp_new_t) / normalizer

so a loss can also run as weighted cross-entropy on an engine that offers only that. A family implements ``terms``;
weights, the denominator, input checks and the graph anchor are the same for all and live here.

Bad input, the same for every objective:
    stored log-probs (old, and gen or ref where used) that are not finite   ValueError with their name and number
    ``logp_new`` that is not finite     the loss is NaN, even where a clip would have hidden it: the trainer's
                                        non-finite step rule (skip, count, stop) decides, not the objective
    a sequence without tokens           log-ratio 0, no gradient, counted as a sequence
    a micro-batch without sequences     loss 0 with gradient 0, so that every rank takes part in the step
    a ratio that overflows its dtype    an infinite or NaN loss or gradient, for the same rule

Left out: forward passes, and diagnostics of the log-ratio (``monitors``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heliostat.objectives.lengths import LengthNormalization, denominator, sequence_weight
from heliostat.types import LossOutput, Mean, TokenBatch


class Terms(NamedTuple):
    """A family's part of the loss, before length weights and the denominator.

    Attributes:
        loss: of each sequence, differentiable in ``logp_new``.
        clipped: whether the objective's clip removed a token's gradient; ``None`` where there is no such clip.
    """

    loss: Float[Tensor, " sequence"]
    clipped: Bool[Tensor, " token"] | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """The objective of an update: hyper-parameters, and pure functions of rewards and log-probabilities.

    Attributes:
        name: its name in recipes; that of the class where a class sets none.
        length_normalization: how lengths enter (see ``objectives.lengths``).
        length_constant: the fixed length in tokens of ``length_normalization = "constant"``; the completion budget
            ``rollout.max_new_tokens`` is the usual choice.
    """

    name: ClassVar[str]
    length_normalization: LengthNormalization = "none"
    length_constant: float = 1.0

    def __init_subclass__(cls) -> None:
        """Name a class that names itself nowhere in its body after itself."""
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __post_init__(self) -> None:
        require_positive("length_constant", self.length_constant)
        if self.length_constant != 1.0 and self.length_normalization != "constant":
            raise ValueError(
                f"length_constant = {self.length_constant:g} is only used with length_normalization = 'constant' (now "
                f"'{self.length_normalization}')"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether ``loss`` reads ``logp_ref``."""
        return False

    @property
    def needs_whole_groups(self) -> bool:
        """Return whether ``loss`` compares the completions of a prompt, so that one micro-batch must hold all of them.

        Such a loss reads ``TokenBatch.group``, and adds up over micro-batches as long as none splits a group.
        """
        return False

    @property
    def regression_tau(self) -> float | None:
        """``tau`` where the loss regresses each sequence's log-ratio on ``A / tau``; ``None`` for any other loss."""
        return None

    @abstractmethod
    def advantages(self, rewards: Float[Tensor, " completion"]) -> Float[Tensor, " completion"]:
        """Compute one advantage per completion of one group; all are 0 where all rewards are equal.

        Raises:
            ValueError: an empty group, a non-finite reward, or a group too small for the baseline.
        """

    @abstractmethod
    def terms(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch) -> Terms:
        """Compute the loss per sequence and which tokens are clipped, on checked input."""

    @abstractmethod
    def can_drop_zero_advantage_groups(self, first_update: bool) -> bool:
        """Whether a group whose advantages are all 0 has no gradient, so that dropping it changes nothing.

        Args:
            first_update: the policy is still the anchor (``logp_new == logp_old``).
        """

    def normalizer(self, num_tokens: Int[Tensor, " sequence"]) -> float:
        """Compute the denominator of one whole optimizer step.

        Args:
            num_tokens: length of every sequence of the step, over all micro-batches and ranks, those of dropped
                zero-signal groups included.

        Raises:
            ValueError: there is nothing to average over.
        """
        return self.normalizer_of_counts(num_tokens.numel(), int(num_tokens.sum()))

    def normalizer_of_counts(self, num_sequences: int, num_tokens: int) -> float:
        """Compute ``normalizer`` from the counts of the whole step, for frameworks that know no more."""
        return denominator(self.length_normalization, num_sequences, num_tokens, self.length_constant)

    def loss(self, logp_new: Float[Tensor, " token"], tokens: TokenBatch, normalizer: float) -> LossOutput:
        """Compute the micro-batch's share of the step's loss: ``sum_i w_i loss_i / normalizer``.

        Several threads call this at once, each with a micro-batch of its own.

        Args:
            logp_new: log-probabilities under the policy being trained, in nats.
            tokens: the micro-batch; ``tokens.advantage`` from this objective's ``advantages``.
            normalizer: from ``normalizer``, of the whole step.

        Raises:
            ValueError: shapes that disagree, a non-finite stored log-prob or advantage, a missing reference.
        """
        self._check(logp_new, tokens, normalizer)
        terms = self.terms(logp_new, tokens)
        # 0 * logp keeps the graph alive where a clip removed every token, and lets a NaN or -inf through to the loss.
        loss = self.average(terms.loss, tokens, normalizer) + 0.0 * logp_new.sum()
        clipped = terms.clipped
        metrics = {} if clipped is None else {"loss/clipped": Mean(float(clipped.sum()), float(clipped.numel()))}
        return LossOutput(loss, metrics)

    def average(self, loss: Float[Tensor, " sequence"], tokens: TokenBatch, normalizer: float) -> Float[Tensor, ""]:
        """Compute ``sum_i w_i loss_i / normalizer`` of losses summed over tokens, for terms beside this objective."""
        weight = sequence_weight(self.length_normalization, tokens.num_tokens, loss.dtype)
        return (weight * loss).sum() / normalizer

    def _check(self, logp_new: Tensor, tokens: TokenBatch, normalizer: float) -> None:
        if not (math.isfinite(normalizer) and normalizer > 0):
            raise ValueError(f"the normalizer of a step must be positive and finite, got {normalizer}")
        num_tokens = int(tokens.num_tokens.sum())
        if not logp_new.shape == tokens.sequence.shape == tokens.logp_old.shape == (num_tokens,):
            raise ValueError(
                f"a batch of {num_tokens} tokens needs one logp_new, logp_old and sequence index per token, got "
                f"{tuple(logp_new.shape)}, {tuple(tokens.logp_old.shape)} and {tuple(tokens.sequence.shape)}"
            )
        if tokens.advantage.shape != tokens.num_tokens.shape:
            raise ValueError(
                f"{tokens.num_sequences} sequences need as many advantages, got {tuple(tokens.advantage.shape)}"
            )
        num_bad = int((~torch.isfinite(tokens.advantage)).sum())
        if num_bad:
            raise ValueError(f"{num_bad} of {tokens.num_sequences} advantages are NaN or infinite")
        require_finite("logp_old", tokens.logp_old, logp_new)
        if self.needs_reference:
            if tokens.logp_ref is None:
                raise ValueError(f"objective '{self.name}' with a reference penalty needs logp_ref, got none")
            require_finite("logp_ref", tokens.logp_ref, logp_new)
        if self.needs_whole_groups and (tokens.group is None):
            raise ValueError(
                f"objective '{self.name}' compares the completions of a prompt within its loss, so TokenBatch.group "
                f"must name the group of each of the {tokens.num_sequences} sequences"
            )


def require_positive(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is not a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value}")


def require_nonnegative(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is negative, NaN or infinite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or a positive finite number, got {value}")


def require_finite(name: str, logp: Float[Tensor, " token"], logp_new: Float[Tensor, " token"]) -> None:
    """Refuse stored log-probs that are NaN or infinite, except on tokens whose ``logp_new`` breaks the loss anyway."""
    num_bad = int((~torch.isfinite(logp) & torch.isfinite(logp_new.detach())).sum())
    if num_bad:
        raise ValueError(
            f"{num_bad} of {logp.numel()} stored log-probs in {name} are NaN or infinite; a sampled token cannot have "
            "probability 0, so the sampler's or trainer's numerics are broken (float16 overflow, truncated sampling)"
        )

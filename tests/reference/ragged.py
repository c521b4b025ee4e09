"""Random ragged batches, and the objectives under the settings that change their formula.

Left out: anything that computes a loss; expectations are written out where they are asserted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.config import ObjectiveSection
from heliostat.objectives import OBJECTIVES, Objective, build_objective
from heliostat.types import LossOutput, TokenBatch

LENGTHS = (3, 1, 5, 2, 4, 0, 6, 2)
REWARDS = (1.0, 0.0, 0.5, 1.0)

OPTIONS: tuple[tuple[str, dict[str, object]], ...] = (
    ("pmd-mean", {"leave_one_out": True, "length_normalization": "sequence"}),
    ("pmd-mean", {"tau": 2.0, "length_normalization": "constant", "length_constant": 7.0}),
    ("pmd-part", {"leave_one_out": True, "floor": 1e-8, "tau": 0.01}),
    ("opmd", {"baseline": "partition"}),
    ("opmd", {"length_normalization": "constant", "length_constant": 7.0}),
    ("log-ratio-decay", {"level": "token", "decay": 0.7, "baseline": "standardized"}),
    ("kl-chi2", {"chi2_weight": 0.0}),
    ("kimi-k2.5", {"min_log_ratio": -0.2, "max_log_ratio": 0.1}),
    ("reinforce", {"truncated_is": 1.1, "kl_ref": 0.3}),
    ("rloo", {"length_normalization": "token"}),
    ("cispo", {"clip_low": 0.1, "clip_high": 0.1, "truncated_is": 2.0}),
    ("dppo", {"max_increase": 0.02, "max_decrease": 0.02, "max_ratio": 1.1}),
    ("grpo", {"kl_ref": 0.04, "truncated_is": 2.0}),
    ("dr-grpo", {"length_constant": 6.0}),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.05, "truncated_is": 2.0}),
)

CASES: tuple[tuple[str, dict[str, object]], ...] = tuple((name, {}) for name in OBJECTIVES) + OPTIONS


def case_name(case: tuple[str, dict[str, object]]) -> str:
    """A readable test id."""
    return " ".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


def build(name: str, **settings: object) -> Objective:
    """An objective through the same door as a recipe."""
    return build_objective(ObjectiveSection(name=name, **settings))


def random_batch(
    seed: int, lengths: Sequence[int] = LENGTHS, drift: float = 0.3, advantage: Sequence[float] | None = None
) -> tuple[Float[Tensor, " token"], TokenBatch]:
    """A leaf ``logp_new`` and its batch in float64; log-ratios are normal with standard deviation ``drift`` nats."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    num_tokens = torch.tensor(lengths, dtype=torch.int64)
    total = int(num_tokens.sum())
    logp_old = -0.05 - 2.0 * torch.rand(total, generator=generator, dtype=torch.float64)
    logp_new = (logp_old + drift * normal(total)).clamp(max=-1e-3).requires_grad_()
    tokens = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), num_tokens),
        num_tokens=num_tokens,
        advantage=normal(len(lengths)) if advantage is None else torch.tensor(advantage, dtype=torch.float64),
        logp_old=logp_old,
        logp_gen=logp_old + 0.2 * normal(total),
        logp_ref=logp_old + 0.2 * normal(total),
    )
    return logp_new, tokens


def run(
    objective: Objective, logp_new: Tensor, tokens: TokenBatch, normalizer: float | None = None
) -> tuple[LossOutput, Float[Tensor, " token"]]:
    """The loss, and its gradient by autograd."""
    output = objective.loss(logp_new, tokens, normalizer or objective.normalizer(tokens.num_tokens))
    (gradient,) = torch.autograd.grad(output.loss, logp_new)
    return output, gradient


def coefficients(objective: Objective, logp_new: Tensor, tokens: TokenBatch) -> Float[Tensor, " token"]:
    """The factor of each token's ``grad logp_new`` before the denominator, by autograd."""
    normalizer = objective.normalizer(tokens.num_tokens)
    return -normalizer * run(objective, logp_new, tokens, normalizer)[1]


def take(logp_new: Tensor, tokens: TokenBatch, sequences: Sequence[int]) -> tuple[Tensor, TokenBatch, Tensor]:
    """The batch made of some sequences in the given order, and where its tokens were."""
    where = torch.cat([torch.nonzero(tokens.sequence == index).flatten() for index in sequences] or [torch.empty(0)])
    where, chosen = where.long(), torch.tensor(list(sequences), dtype=torch.int64)
    part = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), tokens.num_tokens[chosen]),
        num_tokens=tokens.num_tokens[chosen],
        advantage=tokens.advantage[chosen],
        logp_old=tokens.logp_old[where],
        logp_gen=tokens.logp_gen[where],
        logp_ref=None if tokens.logp_ref is None else tokens.logp_ref[where],
    )
    return logp_new.detach()[where].requires_grad_(), part, where

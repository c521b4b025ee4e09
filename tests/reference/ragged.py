"""Random ragged batches, and the objectives under the settings that change their formula.

Left out: anything that computes a loss; expectations are written out where they are asserted.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.config import ObjectiveSection
from heliostat.objectives import OBJECTIVES, Objective, build_objective
from heliostat.objectives.conformance import REWARDS, random_batch, take
from heliostat.types import LossOutput, TokenBatch

__all__ = ["CASES", "OPTIONS", "REWARDS", "build", "case_name", "coefficients", "random_batch", "run", "take"]

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
    ("tpo", {"eta": 0.5, "logits": "mean"}),
    ("lpo", {"projection": "reverse", "baseline": "mean", "tau": 0.3}),
    ("lpo", {"baseline": "mean-normalized", "length_normalization": "token"}),
    ("drpo", {"delta": 0.02, "truncated_is": 1.1, "kl_ref": 0.3}),
    ("maxrl", {"clip_low": 0.05, "clip_high": 0.05}),
)

CASES: tuple[tuple[str, dict[str, object]], ...] = tuple((name, {}) for name in OBJECTIVES) + OPTIONS


def case_name(case: tuple[str, dict[str, object]]) -> str:
    """A readable test id."""
    return " ".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


def build(name: str, **settings: object) -> Objective:
    """An objective through the same door as a recipe."""
    return build_objective(ObjectiveSection(name=name, **settings))


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

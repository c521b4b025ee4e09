"""Conversion of padded tensors with a mask, as other frameworks hold them, to the ragged batch of our objectives.

Masked positions may hold anything: they are dropped here, before an objective is asked.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heliostat.config import ConfigError
from heliostat.objectives import Objective
from heliostat.types import LossOutput, TokenBatch

Padded = Float[Tensor, "sequence position"]


def padded_loss(
    objective: Objective,
    logp_new: Padded,
    mask: Bool[Tensor, "sequence position"],
    advantage: Float[Tensor, " sequence"],
    normalizer: float,
    logp_old: Padded,
    logp_gen: Padded | None = None,
    logp_ref: Padded | None = None,
) -> LossOutput:
    """Compute an objective's loss on a padded micro-batch: ``objective.loss(logp_new[mask], ...)``.

    Args:
        mask: True for positions sampled by the policy; prompt, tool output and padding are False.
        normalizer: of the whole optimizer step, from the objective.
        logp_gen: the sampler's; ``logp_old`` stands in where the framework kept none, and an importance weight is
            then 1. A NaN (a token the sampler did not report) gets weight 1 too.
        logp_ref: only for objectives that ask for it.

    Raises:
        ValueError: as in ``Objective.loss``.

    **Limits**: no padding: the ragged loss. Any content, NaN included, under a False mask: the same loss and gradient.
    """
    num_tokens = mask.sum(dim=1)
    if logp_gen is None:
        logp_gen = logp_old
    tokens = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(mask), device=mask.device), num_tokens),
        num_tokens=num_tokens,
        advantage=advantage,
        logp_old=logp_old[mask],
        logp_gen=torch.where(logp_gen.isnan(), logp_old, logp_gen)[mask],
        logp_ref=None if logp_ref is None else logp_ref[mask],
    )
    return objective.loss(logp_new[mask], tokens, normalizer)


def refuse_whole_groups(objective: Objective, framework: str) -> None:
    """Refuse an objective that compares the completions of a prompt within its loss.

    Raises:
        ConfigError: the objective does, and ``framework`` splits its batches anywhere.
    """
    if objective.needs_whole_groups:
        raise ConfigError(
            f"objective '{objective.name}' compares the completions of a prompt within its loss, and {framework} does "
            "not keep them in one micro-batch; use heliostat train, or another objective"
        )


def group_advantages(
    objective: Objective, rewards: Float[Tensor, " sequence"], groups: list[list[int]]
) -> Float[Tensor, " sequence"]:
    """Compute the objective's advantages of several groups; a NaN reward takes no part and gets advantage 0.

    Args:
        groups: indices of each group's completions.

    **Limits**: a group with fewer than two rewards has nothing to compare: advantage 0.
    """
    advantages = torch.zeros_like(rewards)
    for group in groups:
        members = torch.tensor([index for index in group if not rewards[index].isnan()], device=rewards.device)
        if members.numel() > 1:
            advantages[members] = objective.advantages(rewards[members])
    return advantages


def only_advantage(advantages: Padded, mask: Bool[Tensor, "sequence position"]) -> Float[Tensor, " sequence"]:
    """Extract the value that a framework repeats over the tokens of each sequence; 0 where no token is sampled.

    Raises:
        ValueError: it differs between the tokens of a sequence: our objectives have one per sequence.
    """
    first = advantages.gather(1, mask.int().argmax(dim=1, keepdim=True))
    if bool(((advantages != first) & mask).any()):
        raise ValueError(
            "advantages or weights differ between the tokens of a sequence, and this objective has one per sequence; "
            "choose an estimator of outcome advantages"
        )
    return first.squeeze(1).masked_fill(~mask.any(dim=1), 0.0)

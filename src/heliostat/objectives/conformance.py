"""Checks that every objective must pass, shipped or your own: ``heliostat check my_module:MyObjective``.

Each check tries the objective on a small ragged batch in float64, and raises ``Nonconforming`` with a sentence about
the difference that training would see. None compares with a formula: an objective may be any function of rewards and
log-probabilities that keeps these promises.

Left out: whether it learns, and agreement with a paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.conformance import Nonconforming, run_checks
from heliostat.objectives.contract import Objective
from heliostat.types import TokenBatch

LENGTHS = (3, 1, 5, 2, 4, 0, 6, 2)
REWARDS = (1.0, 0.0, 0.5, 1.0)
TOLERANCE = 1e-9
"""Of float64 sums in another order."""


Check = Callable[[Objective], None]


def random_batch(
    seed: int, lengths: Sequence[int] = LENGTHS, drift: float = 0.3, advantage: Sequence[float] | None = None
) -> tuple[Float[Tensor, " token"], TokenBatch]:
    """Draw a leaf ``logp_new`` and its batch in float64; every four sequences are a group.

    Args:
        drift: standard deviation of log-ratios in nats; 0: the policy is the anchor.
        advantage: by sequence; default: standard normal.
    """
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
        group=torch.arange(len(lengths)) // len(REWARDS),
    )
    return logp_new, tokens


def take(logp_new: Tensor, tokens: TokenBatch, sequences: Sequence[int]) -> tuple[Tensor, TokenBatch, Tensor]:
    """Make a batch of some sequences in the given order; return it, and the places that its tokens had."""
    places = torch.cat([torch.zeros(0), *(torch.nonzero(tokens.sequence == index).flatten() for index in sequences)])
    where, chosen = places.long(), torch.tensor(list(sequences), dtype=torch.int64)
    part = TokenBatch(
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), tokens.num_tokens[chosen]),
        num_tokens=tokens.num_tokens[chosen],
        advantage=tokens.advantage[chosen],
        logp_old=tokens.logp_old[where],
        logp_gen=tokens.logp_gen[where],
        logp_ref=None if tokens.logp_ref is None else tokens.logp_ref[where],
        group=None if tokens.group is None else tokens.group[chosen],
    )
    return logp_new.detach()[where].requires_grad_(), part, where


def advantages_belong_to_completions(objective: Objective) -> None:
    """Check that each completion has a finite advantage, whatever their order, and that equal rewards teach nothing."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    found = objective.advantages(rewards)
    if found.shape != rewards.shape or not found.isfinite().all():
        raise Nonconforming(f"advantages of {len(rewards)} rewards must be as many finite numbers, got {found}")
    order = torch.tensor([2, 0, 3, 1])
    if not torch.allclose(objective.advantages(rewards[order]), found[order], atol=TOLERANCE):
        raise Nonconforming("advantages depend on the order of the completions, which is arbitrary")
    if not torch.allclose(same := objective.advantages(torch.full_like(rewards, 0.5)), torch.zeros(4).double()):
        raise Nonconforming(f"a group with equal rewards teaches nothing, but its advantages are {same.tolist()}")


def loss_is_finite_and_has_a_gradient(objective: Objective) -> None:
    """Check that the loss is a finite number with a finite gradient."""
    logp_new, tokens = random_batch(0)
    loss = _loss(objective, logp_new, tokens)
    if loss.shape != () or not loss.isfinite():
        raise Nonconforming(f"the loss must be one finite number, got {loss}")
    gradient = _gradient(loss, logp_new)
    if not gradient.isfinite().all():
        raise Nonconforming("the gradient of a finite loss is not finite; look for a root, a log or a division at 0")
    if not gradient.any():
        raise Nonconforming("no token has a gradient; use logp_new itself and not a detached copy of it")


def micro_batches_add_up(objective: Objective) -> None:
    """Check that the losses of micro-batches add up to that of the step, however it is split."""
    # An objective that compares the completions of a prompt is given whole groups.
    splits = ([3, 1, 0, 2], [6, 4, 7, 5]) if objective.needs_whole_groups else ([0, 3, 4], [1], [2, 5, 6, 7])
    logp_new, tokens = random_batch(1)
    normalizer = objective.normalizer(tokens.num_tokens)
    whole = float(_loss(objective, logp_new, tokens, normalizer).detach())
    parts = [take(logp_new, tokens, chosen)[:2] for chosen in splits]
    added = sum(float(_loss(objective, *part, normalizer).detach()) for part in parts)
    if abs(whole - added) > TOLERANCE * max(1.0, abs(added)):
        raise Nonconforming(
            f"the loss of a step is {whole:.6g}, but its micro-batches add up to {added:.6g}; divide by normalizer "
            "only, and use no mean or deviation of the micro-batch; an objective that compares the completions of a "
            "prompt returns True from needs_whole_groups and reads tokens.group"
        )


def order_does_not_matter(objective: Objective) -> None:
    """Check that completions in another order have the same loss and the same gradients."""
    logp_new, tokens = random_batch(2)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    turned, batch, where = take(logp_new, tokens, order)
    first, second = _loss(objective, logp_new, tokens), _loss(objective, turned, batch)
    gradient, other = _gradient(first, logp_new), _gradient(second, turned)
    moved = not torch.allclose(gradient[where], other, atol=TOLERANCE)
    if moved or abs(float((first - second).detach())) > TOLERANCE:
        raise Nonconforming("the loss or its gradient depends on the order of the completions, which is arbitrary")


def dropped_groups_have_no_gradient(objective: Objective) -> None:
    """Check that dropping groups without signal changes nothing, where the objective allows it."""
    for at_anchor in (True, False):
        if not objective.can_drop_zero_advantage_groups(at_anchor):
            continue
        logp_new, tokens = random_batch(3, drift=0.0 if at_anchor else 0.3, advantage=[0.0] * len(LENGTHS))
        if at_anchor:
            tokens = dataclasses.replace(tokens, logp_old=logp_new.detach())
        if _gradient(_loss(objective, logp_new, tokens), logp_new).any():
            raise Nonconforming(
                f"can_drop_zero_advantage_groups({at_anchor}) is True, but a completion with advantage 0 has a "
                "gradient; return False"
            )


def broken_numbers_are_not_hidden(objective: Objective) -> None:
    """Check that a log-probability that is NaN shows in the loss, so that the step is skipped and counted."""
    logp_new, tokens = random_batch(4)
    with torch.no_grad():
        logp_new[2] = float("nan")
    if _loss(objective, logp_new, tokens).isfinite():
        raise Nonconforming("a log-probability that is NaN leaves the loss finite, so its step would not be skipped")


def nothing_to_learn_from_is_no_error(objective: Objective) -> None:
    """Check that a micro-batch without tokens or completions, as a rank may have, has a finite loss."""
    normalizer = objective.normalizer(random_batch(5)[1].num_tokens)
    for chosen, what in (([5], "a completion without tokens"), ([], "a micro-batch without completions")):
        loss = _loss(objective, *take(*random_batch(5), chosen)[:2], normalizer).detach()
        if not loss.isfinite():
            raise Nonconforming(f"the loss of {what} is {float(loss)}; its log-ratio is 0")


def inputs_stay_unchanged(objective: Objective) -> None:
    """Check that the loss changes nothing in place, and repeats itself."""
    logp_new, tokens = random_batch(6)
    before = [value.clone() for value in _tensors(tokens)]
    first = float(_loss(objective, logp_new, tokens).detach())
    if any(not torch.equal(one, other) for one, other in zip(before, _tensors(tokens), strict=True)):
        raise Nonconforming("the loss writes to its inputs; make new tensors instead of changing them in place")
    if float(_loss(objective, logp_new, tokens).detach()) != first:
        raise Nonconforming("the loss of the same batch differs the second time; keep no state in the objective")


CHECKS: tuple[Check, ...] = (
    advantages_belong_to_completions,
    loss_is_finite_and_has_a_gradient,
    micro_batches_add_up,
    order_does_not_matter,
    dropped_groups_have_no_gradient,
    broken_numbers_are_not_hidden,
    nothing_to_learn_from_is_no_error,
    inputs_stay_unchanged,
)
"""Every check, in an order in which the first failure is the likely cause of others."""


def failures(objective: Objective) -> dict[str, str]:
    """Run every check; return a sentence by check, empty where it passed."""
    return run_checks(CHECKS, objective)


def _loss(objective: Objective, logp_new: Tensor, tokens: TokenBatch, normalizer: float | None = None) -> Tensor:
    return objective.loss(logp_new, tokens, normalizer or objective.normalizer(tokens.num_tokens)).loss


def _gradient(loss: Tensor, logp_new: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logp_new)
    return gradient


def _tensors(tokens: TokenBatch) -> list[Tensor]:
    values = [getattr(tokens, each.name) for each in dataclasses.fields(tokens)]
    return [value for value in values if isinstance(value, Tensor)]

"""Repeated exact steps, and the identity that sums them.

For any comparison policy ``pi*`` and the step from t to t + 1, with ``l = 1``,

    <pi* - new, r> = tau [KL(pi* || old) - KL(pi* || new) - KL(new || old)] + tau lambda (E_{pi*}[rho] - E_new[rho])

The first bracket telescopes over steps (ordinary mirror descent). The last term is the cost of the chi-square
regulariser: it is positive while ``pi*`` has further to go than the step has gone.

Left out: sampling noise (``theory.finite``) and steps that are only partly solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.cards import Card
from heliostat.linalg.arrays import as_tensor
from heliostat.theory.certificate import MirrorStep
from heliostat.theory.instance import ArrayLike, make_instance

MAX_STEPS = 100_000


class Method(Protocol):
    """``pmd_mean``, ``pmd_part``, or anything else that takes one exact step."""

    def __call__(
        self, probs: ArrayLike | None, rewards: ArrayLike, tau: ArrayLike, *, log_probs: ArrayLike | None = None
    ) -> MirrorStep: ...


@dataclass(frozen=True, slots=True, repr=False)
class Trajectory(Card):
    """Repeated exact steps; entry 0 is the starting policy.

    Attributes:
        log_probs: the policies, in nats.
        mean_reward: their mean rewards.
        lam: the multiplier of each step taken.
    """

    log_probs: Float[Tensor, " policy *batch action"]
    mean_reward: Float[Tensor, " policy *batch"]
    lam: Float[Tensor, " step *batch"]


def iterate(
    method: Method,
    probs: ArrayLike | None,
    rewards: ArrayLike,
    tau: ArrayLike,
    num_steps: int,
    *,
    log_probs: ArrayLike | None = None,
) -> Trajectory:
    """Take ``num_steps`` exact steps, each from the policy of the previous one.

    Args:
        method: ``pmd_mean`` or ``pmd_part``.
        probs, rewards, tau, log_probs: as in ``pmd_mean``; rewards and tau stay the same throughout.
        num_steps: at least 0.

    **Limits**: with PMD-part, n steps at tau equal one step at ``tau / n``.
    """
    start = make_instance(probs, rewards, tau, log_probs=log_probs)
    policies, means, lams = [start.log_probs], [start.mean_reward], []
    for _ in range(num_steps):
        step = method(None, rewards, tau, log_probs=policies[-1])
        policies.append(step.log_probs)
        means.append(means[-1] + step.gain)
        lams.append(step.lam)
    empty = start.mean_reward.new_zeros((0, *start.mean_reward.shape))
    return Trajectory(torch.stack(policies), torch.stack(means), torch.stack(lams) if lams else empty)


def steps_to(method: Method, success: float, tau: float, goal: float = 0.99) -> int:
    """Count the exact steps with 0/1 rewards until the success probability reaches ``goal``.

    Raises:
        ValueError: success or goal outside (0, 1).
        ArithmeticError: not reached within ``MAX_STEPS``.
    """
    if not (0 < success < 1 and 0 < goal < 1):
        raise ValueError("success and goal must lie strictly between 0 and 1")
    log_probs = torch.tensor([success, 1 - success], dtype=torch.float64).log()
    for num_steps in range(MAX_STEPS):
        if float(log_probs[0].exp()) >= goal:
            return num_steps
        log_probs = method(None, (1.0, 0.0), tau, log_probs=log_probs).log_probs
    raise ArithmeticError(f"success did not reach {goal} within {MAX_STEPS} steps")


@dataclass(frozen=True, slots=True, repr=False)
class Telescoping(Card):
    """The terms of the identity for one step, in reward units.

    Attributes:
        regret: ``<pi* - new, r>``.
        approach: ``tau [KL(pi* || old) - KL(pi* || new)]``, which telescopes.
        stride: ``-tau KL(new || old)``.
        slowdown: ``tau lambda (E_{pi*}[rho] - E_new[rho])``, the chi-square term.
        residual: regret minus the other three; zero up to rounding.
    """

    regret: Float[Tensor, "*batch"]
    approach: Float[Tensor, "*batch"]
    stride: Float[Tensor, "*batch"]
    slowdown: Float[Tensor, "*batch"]

    @property
    def residual(self) -> Float[Tensor, "*batch"]:
        return self.regret - self.approach - self.stride - self.slowdown


def telescoping(step: MirrorStep, rewards: ArrayLike, tau: ArrayLike, target: ArrayLike) -> Telescoping:
    """Split one step's remaining regret towards a comparison policy (``l = 1``).

    Args:
        step: an exact step of any baseline.
        rewards, tau: those the step was taken with.
        target: the comparison policy ``pi*``, ``[*batch, action]``; it may be deterministic, and must not ask for
            actions that the step gives probability zero.

    Raises:
        ValueError: the comparison policy is not a distribution, or leaves the support.
    """
    goal = make_instance(target, rewards, tau)
    wanted = goal.log_probs.exp()
    if bool(((wanted > 0) & torch.isneginf(step.log_probs)).any()):
        raise ValueError("the comparison policy uses an action that the step gives probability zero")
    reward, temperature = as_tensor(rewards), goal.tau
    # KL(pi* || old) - KL(pi* || new) is E_{pi*}[log rho]: the entropy of pi* cancels before it is computed.
    return Telescoping(
        regret=((wanted - step.probs) * reward).sum(-1),
        approach=temperature * (wanted * step.log_ratio).sum(-1),
        stride=-temperature * step.kl_new_old,
        slowdown=temperature * step.lam * ((wanted - step.probs) * step.ratio).sum(-1),
    )

"""Distances of a policy to a teacher at the states of the policy's own samples, one number per sampled token.

    sampled      rho (log pi - log pi_T) - rho + 1     from the sampled token alone, with rho = pi / pi_old
    reverse-kl   KL(pi || pi_T)                        over the vocabulary
    forward-kl   KL(pi_T || pi)                        over the vocabulary
    jsd          beta KL(pi_T || m) + (1 - beta) KL(pi || m),   m = beta pi_T + (1 - beta) pi

States are fixed, as in the policy gradient with a discount of 0: the influence of a token on the states after it is
left out. The sum over tokens of ``reverse-kl`` is then an unbiased estimate of the KL divergence of whole sequences,
whose full gradient would add that influence.

Left out: the teacher's forward passes (``train``), and a mixture of the teacher's samples into the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.objectives.contract import require_positive

Kind = Literal["sampled", "reverse-kl", "forward-kl", "jsd"]


def sampled_reverse_kl(
    logp_new: Float[Tensor, " token"], logp_teacher: Float[Tensor, " token"], logp_old: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Estimate ``KL(pi || pi_T)`` from the sampled token: ``rho (log pi - log pi_T) - rho + 1``, in nats.

    Its gradient is ``rho (log pi - log pi_T) grad log pi``: the policy gradient whose advantage is minus the log-ratio
    to the teacher. The control variate ``1 - rho`` has mean 0, and removes the rest of the gradient.

    Args:
        logp_new: under the policy being trained; the only input with a gradient.
        logp_teacher: under the teacher.
        logp_old: under the policy that the tokens are drawn from.

    **Limits** The mean over tokens drawn from ``old`` is ``reverse_kl``, and so is that of the gradient. ``new = old``:
    the log-ratio itself. ``new = teacher``: no gradient.
    """
    ratio = (logp_new - logp_old).exp()
    return ratio * (logp_new - logp_teacher) - ratio + 1.0


def reverse_kl(
    logp_policy: Float[Tensor, "token vocab"], logp_teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """Compute ``KL(pi || pi_T)`` of each token's distribution, in nats.

    **Limits** ``pi = pi_T``: 0, with gradient 0.
    """
    return (logp_policy.exp() * (logp_policy - logp_teacher)).sum(dim=-1)


def forward_kl(
    logp_policy: Float[Tensor, "token vocab"], logp_teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """Compute ``KL(pi_T || pi)`` of each token's distribution, in nats.

    **Limits** ``pi = pi_T``: 0, with gradient 0. A teacher that is certain: minus the log-probability of its token.
    """
    return (logp_teacher.exp() * (logp_teacher - logp_policy)).sum(dim=-1)


def generalized_jsd(
    logp_policy: Float[Tensor, "token vocab"], logp_teacher: Float[Tensor, "token vocab"], beta: float
) -> Float[Tensor, " token"]:
    """Compute the Jensen-Shannon divergence with weight ``beta`` on the teacher, in nats.

    **Limits** ``pi = pi_T``: 0, with gradient 0. ``beta`` -> 0: ``beta`` times ``forward_kl``; ``beta`` -> 1:
    ``1 - beta`` times ``reverse_kl``. ``beta = 1/2``: symmetric, and at most log 2.
    References: Agarwal et al. 2024, arXiv 2306.13649, which takes the two divergences themselves at 0 and 1.
    """
    weight = torch.tensor([1.0 - beta, beta], dtype=logp_policy.dtype, device=logp_policy.device).log()
    mixture = torch.logaddexp(logp_policy + weight[0], logp_teacher + weight[1])
    return beta * forward_kl(mixture, logp_teacher) + (1.0 - beta) * reverse_kl(logp_policy, mixture)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A distance to a teacher as a term of the loss.

    Attributes:
        kind: which distance; see the head of this file.
        weight: of the term, in reward units per nat.
        beta: weight of the teacher in ``jsd``, strictly between 0 and 1.
    """

    kind: Kind = "sampled"
    weight: float = 1.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        require_positive("weight", self.weight)
        if not 0.0 < self.beta < 1.0:
            raise ValueError(f"beta must lie between 0 (forward-kl) and 1 (reverse-kl), got {self.beta}")

    @property
    def needs_logits(self) -> bool:
        """Whether the distance is taken over the vocabulary, and not from the sampled token alone."""
        return self.kind != "sampled"

    def of_logits(
        self, logp_policy: Float[Tensor, "token vocab"], logp_teacher: Float[Tensor, "token vocab"]
    ) -> Float[Tensor, " token"]:
        """Compute the distance of whole distributions, for the kinds that need logits."""
        return _OF_LOGITS[self.kind](logp_policy, logp_teacher, self.beta)


_OF_LOGITS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reverse-kl": lambda policy, teacher, beta: reverse_kl(policy, teacher),
    "forward-kl": lambda policy, teacher, beta: forward_kl(policy, teacher),
    "jsd": generalized_jsd,
}

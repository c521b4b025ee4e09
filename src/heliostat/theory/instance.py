"""One finite problem, checked and converted to the form that every solver here reads.

A problem is an old policy over finitely many actions, a reward for each, and a temperature; leading dimensions are a
batch. Everything is float64. The one numerical idea is that rewards are centred on the reward of the likeliest action
before they are averaged, so that ``reward - mean reward`` keeps its relative precision even where one action holds all
but 1e-300 of the probability.

Left out: solving anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heliostat.linalg.arrays import as_tensor

SUM_TOLERANCE = 1e-6  # how far probabilities may be from summing to one; they are then normalised exactly

ArrayLike = Tensor | Sequence[object] | float


@dataclass(frozen=True, slots=True)
class Instance:
    """An old policy, its rewards and a temperature.

    Attributes:
        log_probs: log of the old policy in nats, normalised; minus infinity outside the support.
        support: actions with positive probability. The others keep probability zero and ratio one.
        centred: reward minus its mean under the old policy; 0 outside the support.
        mean_reward: the mean reward.
        tau: temperature, in reward units per nat, one per batch entry.
        log_lengths: log of the weight that divides each action's squared loss; 0 outside the support.
    """

    log_probs: Float[Tensor, "*batch action"]
    support: Bool[Tensor, "*batch action"]
    centred: Float[Tensor, "*batch action"]
    mean_reward: Float[Tensor, "*batch"]
    tau: Float[Tensor, "*batch"]
    log_lengths: Float[Tensor, "*batch action"]

    @property
    def mean_target(self) -> Float[Tensor, "*batch action"]:
        """PMD-mean's regression target ``(r - mean r) / tau``, in nats."""
        return self.centred / self.tau[..., None]


def make_instance(
    probs: ArrayLike | None,
    rewards: ArrayLike,
    tau: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    log_probs: ArrayLike | None = None,
) -> Instance:
    """Check and normalise one problem or a batch of them.

    Args:
        probs: old policy, ``[..., action]``; or ``None`` when ``log_probs`` is given.
        rewards: finite rewards that broadcast against it.
        tau: positive temperature; a number or one per batch entry.
        lengths: positive weight dividing each action's squared loss (sequence length); ``None`` means 1.
        log_probs: the old policy in nats, for probabilities that a float cannot hold; minus infinity means zero.

    Raises:
        ValueError: in one sentence, the defect: an empty action set, negative, NaN or unnormalised
            probabilities (tolerance ``SUM_TOLERANCE``), non-finite rewards, non-positive tau or lengths, or shapes
            that do not broadcast.
    """
    logp = _policy(probs, log_probs)
    r = _finite(rewards, "rewards")
    weights = _finite(1.0 if lengths is None else lengths, "lengths", positive=True)
    temperature = _finite(tau, "tau", positive=True)
    if r.ndim == 0:
        raise ValueError("rewards need one value per action; got a single number")
    try:
        logp, r, weights, _ = torch.broadcast_tensors(logp, r, weights, temperature[..., None])  # type: ignore[no-untyped-call]
        temperature = temperature.expand(logp.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"probabilities {tuple(logp.shape)}, rewards {tuple(r.shape)}, lengths {tuple(weights.shape)} and tau "
            f"{tuple(temperature.shape)} do not broadcast; tau has one value per batch entry, the others end in actions"
        ) from None
    support = ~torch.isneginf(logp)
    mode_reward = r.gather(-1, logp.argmax(-1, keepdim=True))
    from_mode = torch.where(support, r - mode_reward, 0.0)
    offset = (logp.exp() * from_mode).sum(-1, keepdim=True)
    centred = torch.where(support, from_mode - offset, 0.0)
    if not torch.isfinite(centred / temperature[..., None]).all():
        raise ValueError("rewards / tau exceeds the float64 range; rescale rewards and tau together")
    mean_reward = (mode_reward + offset)[..., 0]
    log_lengths = torch.where(support, weights.log(), 0.0)
    return Instance(logp, support, centred, mean_reward, temperature, log_lengths)


def _policy(probs: ArrayLike | None, log_probs: ArrayLike | None) -> Tensor:
    if (probs is None) == (log_probs is None):
        raise ValueError("give the old policy either as probs or as log_probs, not both and not neither")
    given = as_tensor(probs if log_probs is None else log_probs)
    if given.ndim == 0 or given.shape[-1] == 0:
        raise ValueError(f"the action set is empty: the old policy has shape {tuple(given.shape)}")
    if given.isnan().any() or (log_probs is None and bool((given < 0).any())):
        raise ValueError("probabilities must not be negative or NaN")
    logp = given.log() if log_probs is None else given
    total = logp.logsumexp(-1)
    if not bool((total.abs() <= SUM_TOLERANCE).all()):
        worst = float(total.exp().flatten()[(total.abs()).argmax()])
        raise ValueError(f"probabilities must sum to one within {SUM_TOLERANCE:g}; they sum to {worst:.8g}")
    return logp - total[..., None]


def _finite(value: ArrayLike, name: str, *, positive: bool = False) -> Tensor:
    tensor = as_tensor(value)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite; got a NaN or an infinity")
    if positive and bool((tensor <= 0).any()):
        raise ValueError(f"{name} must be positive; got {float(tensor.min()):g}")
    return tensor

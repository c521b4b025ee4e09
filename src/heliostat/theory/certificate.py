"""The result of an exact step, and the residuals that prove it.

A certificate does not trust the solver: it takes the log-ratios and lambda as given and evaluates, by plain sums, the
identities T1 to T6 and T9 that hold together only at the optimum. Expectations are sums of non-negative terms wherever
the identity allows, so divergences of 1e-300 are as accurate as divergences of one.

Left out: the solvers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.cards import Card
from heliostat.theory.instance import Instance
from heliostat.theory.multiplier import log_partition_of_centred, log_phi


@dataclass(frozen=True, slots=True)
class Fit:
    """The solution of a solver: log-ratios and ``lambda = sign e^log_size`` for given targets.

    Attributes:
        targets: ``t`` in nats; 0 outside the support.
        mean_target: ``E_old[t] = (mean r - b) / tau``.
        log_ratio: ``log rho``; 0 outside the support.
        sign: -1, 0 or 1.
        log_size: ``log |lambda|``; minus infinity where sign is 0.
    """

    targets: Float[Tensor, "*batch action"]
    mean_target: Float[Tensor, "*batch"]
    log_ratio: Float[Tensor, "*batch action"]
    sign: Float[Tensor, "*batch"]
    log_size: Float[Tensor, "*batch"]


@dataclass(frozen=True, slots=True, repr=False)
class Certificate(Card):
    """Residuals of the identities at the optimum; each is relative to ``max(1, largest |target|)``, per batch entry.

    Attributes:
        stationarity: T1, ``max |log rho + lambda l rho - t|`` over the support.
        normalisation: ``|E_old[rho] - 1|``.
        lam_kl: T2, ``lambda E_old[l rho] = KL(old || new) + (mean r - b) / tau``. For PMD-mean and ``l = 1`` this
            says ``lambda = KL(old || new)``.
        regulariser: T3, the Frank-Wolfe gap of ``<pi, r>/tau - KL(pi || old) - lambda/2 E_old[l rho^2]`` at the new
            policy. For ``lambda >= 0`` the function is concave and the gap bounds how far from its maximum we are;
            for ``lambda < 0`` it only says that the point is stationary.
        gain: T4, ``KL(new || old) + KL(old || new) + lambda E_old[l rho (rho - 1)] = gain / tau``.
        lam_sign: T6, ``|lambda|`` where its sign is not that of ``tau log Z - b``; zero where they agree.
        lam_length: T9, ``lambda = E_old[(t - log rho) / l]``.
    """

    stationarity: Float[Tensor, "*batch"]
    normalisation: Float[Tensor, "*batch"]
    lam_kl: Float[Tensor, "*batch"]
    regulariser: Float[Tensor, "*batch"]
    gain: Float[Tensor, "*batch"]
    lam_sign: Float[Tensor, "*batch"]
    lam_length: Float[Tensor, "*batch"]

    @property
    def worst(self) -> Float[Tensor, "*batch"]:
        """The largest residual of all."""
        return torch.stack([getattr(self, spec.name) for spec in fields(self)]).amax(0)


@dataclass(frozen=True, slots=True, repr=False)
class MirrorStep(Card):
    """One exact step from an old to a new policy.

    Attributes:
        log_ratio: ``log rho = log(new / old)`` in nats; 0 for actions of probability zero.
        ratio: ``rho``; infinite where ``log_ratio`` exceeds 709.
        probs: the new policy.
        log_probs: its logarithm, for the next step; minus infinity outside the support.
        lam: the multiplier lambda, in nats.
        log_lam: log of ``|lam|``, which may lie below every float; minus infinity where lam is zero.
        kl_new_old: ``KL(new || old)`` in nats.
        kl_old_new: ``KL(old || new)`` in nats.
        chi_square: ``E_old[rho^2] - 1``; infinite where a ratio is.
        gain: mean reward of the new policy minus that of the old, in reward units.
        chi2_share: share of the gain that the lambda term takes, ``tau lambda E_old[l rho (rho - 1)] / gain``; with
            binary rewards and ``l = 1`` it is ``tau lambda (rho_correct - rho_incorrect)``. 0 where there is no gain;
            unequal lengths can make it negative.
        certificate: residuals of the identities that hold at the optimum.
    """

    log_ratio: Float[Tensor, "*batch action"]
    ratio: Float[Tensor, "*batch action"]
    probs: Float[Tensor, "*batch action"]
    log_probs: Float[Tensor, "*batch action"]
    lam: Float[Tensor, "*batch"]
    log_lam: Float[Tensor, "*batch"]
    kl_new_old: Float[Tensor, "*batch"]
    kl_old_new: Float[Tensor, "*batch"]
    chi_square: Float[Tensor, "*batch"]
    gain: Float[Tensor, "*batch"]
    chi2_share: Float[Tensor, "*batch"]
    certificate: Certificate


def certify(instance: Instance, fit: Fit) -> MirrorStep:
    """Derive every quantity of a step from its log-ratios and lambda, and check the identities."""
    s, t, old, log_old = fit.log_ratio, fit.targets, instance.log_probs.exp(), instance.log_probs
    log_new = log_old + s
    new = log_new.exp()
    # Products are exponentials of sums: lambda may be 1e-400 where rho is 1e400.
    w = fit.sign[..., None] * (fit.log_size[..., None] + instance.log_lengths + s).exp()
    lam = fit.sign * fit.log_size.exp()
    kl_old_new = (log_old + log_phi(s)).exp().sum(-1)
    kl_new_old = (log_new + log_phi(-s)).exp().sum(-1)
    moved = torch.where(s > 0, -new * torch.expm1(-s), old * torch.expm1(s))  # new - old, without cancellation
    gain = (moved * instance.centred).sum(-1)
    mixed = (moved * w).sum(-1)
    residual = torch.where(instance.support, t - s - w, 0.0)
    room = log_partition_of_centred(log_old, instance.mean_target) + fit.mean_target
    scale = t.abs().amax(-1).clamp(min=1.0)
    best = torch.where(instance.support, residual, -torch.inf).amax(-1)
    certificate = Certificate(
        stationarity=residual.abs().amax(-1) / scale,
        normalisation=moved.sum(-1).abs(),
        lam_kl=((old * w).sum(-1) - kl_old_new - fit.mean_target).abs() / scale,
        regulariser=(best - (new * residual).sum(-1)).abs() / scale,
        gain=(kl_new_old + kl_old_new + mixed - gain / instance.tau).abs() / scale,
        lam_sign=torch.where(lam * room >= 0, 0.0, lam.abs()) / scale,
        lam_length=(lam - (old * (t - s) * (-instance.log_lengths).exp()).sum(-1)).abs() / scale,
    )
    return MirrorStep(
        log_ratio=s,
        ratio=s.exp(),
        probs=new,
        log_probs=log_new,
        lam=lam,
        log_lam=fit.log_size,
        kl_new_old=kl_new_old,
        kl_old_new=kl_old_new,
        chi_square=(log_old + 2 * _log_abs_expm1(s)).exp().sum(-1),
        gain=gain,
        chi2_share=torch.where(gain > 0, mixed * instance.tau / gain, 0.0),
        certificate=certificate,
    )


def _log_abs_expm1(s: Tensor) -> Tensor:
    """Compute ``log |e^s - 1|`` for any size of s."""
    return s.clamp(min=0.0) + (-torch.expm1(-s.abs())).log()

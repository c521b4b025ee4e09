"""Two classes, correct and incorrect: the exact step and its three regimes in closed form.

The exact step is the general solver on two actions. The regimes are asymptotic formulas for small tau, which show in
one line each how the step behaves; ``tests`` measure how fast they become exact.

    plentiful   p >> tau                       wrong answers keep e^{-p/tau} of their mass
    scarce      e^{-2/tau}/tau << p << tau     the gain stops near sqrt(p / tau)
    tilted      p << e^{-2/tau}/tau, or tau -> infinity: no different from the exponential tilt

Left out: more than two reward values (``theory.step``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.cards import Card
from heliostat.linalg.arrays import as_tensor
from heliostat.linalg.lambert import lambertw_exp
from heliostat.theory.certificate import MirrorStep
from heliostat.theory.instance import ArrayLike
from heliostat.theory.step import pmd_mean, pmd_part


@dataclass(frozen=True, slots=True, repr=False)
class BinaryStep(Card):
    """One step with 0/1 rewards.

    Attributes:
        ratio_correct, ratio_incorrect: new over old probability of each class.
        lam: the multiplier.
        success: new probability of a correct answer.
        logit_gain: rise of its log-odds; ``1/tau - lambda (ratio_correct - ratio_incorrect)``.
        chi2_share: ``tau lambda (ratio_correct - ratio_incorrect)``, the chi-square term's share of the step.
    """

    ratio_correct: Float[Tensor, "*batch"]
    ratio_incorrect: Float[Tensor, "*batch"]
    lam: Float[Tensor, "*batch"]
    success: Float[Tensor, "*batch"]
    logit_gain: Float[Tensor, "*batch"]
    chi2_share: Float[Tensor, "*batch"]


def binary_pmd_mean(success: ArrayLike, tau: ArrayLike) -> BinaryStep:
    """Solve the PMD-mean step from success probability p with 0/1 rewards.

    ``log rho_1 + lambda rho_1 = (1 - p)/tau``, ``log rho_0 + lambda rho_0 = -p/tau``, ``p rho_1 + (1-p) rho_0 = 1``

    Args:
        success: p strictly between 0 and 1, a number or ``[*batch]``.
        tau: positive; broadcasts with p.

    Raises:
        ValueError: p outside (0, 1) or tau not positive.

    **Limits**: the three regimes of this module.
    """
    return _of(pmd_mean(_two_classes(success), (1.0, 0.0), tau))


def binary_pmd_part(success: ArrayLike, tau: ArrayLike) -> BinaryStep:
    """Solve the PMD-part step from success probability p with 0/1 rewards: the log-odds rise by exactly ``1 / tau``.

    Args and Raises as in ``binary_pmd_mean``.
    """
    return _of(pmd_part(_two_classes(success), (1.0, 0.0), tau))


def plentiful(success: ArrayLike, tau: ArrayLike) -> BinaryStep:
    """Approximate PMD-mean for ``p >> tau``: all correct mass is reached, wrong mass falls to ``e^{-p/tau}``.

    ``rho_1 = 1/p``, ``rho_0 = e^{-p/tau}``, ``lambda = p (1 - p)/tau + p log p``, logit gain ``p/tau + log(1/p)``
    """
    p, tau = _pair(success, tau)
    lam = p * (1 - p) / tau + p * p.log()
    wrong = (-p / tau).exp()
    return BinaryStep(1 / p, wrong, lam, 1 - (1 - p) * wrong, p / tau - p.log(), tau * lam * (1 / p - wrong))


def scarce(success: ArrayLike, tau: ArrayLike) -> BinaryStep:
    """Approximate PMD-mean for ``p << tau``: the chi-square term stops the climb near ``sqrt(p / tau)``.

    ``p rho_1^2 + log rho_1 = 1/tau``, so ``rho_1 = sqrt(W0(2 p e^{2/tau}) / 2p)``; ``lambda = p rho_1``. For
    ``p << e^{-2/tau}/tau`` it goes over into ``rho_1 = e^{1/tau}``, the tilt.
    """
    p, tau = _pair(success, tau)
    ratio = (lambertw_exp(2 / tau + (2 * p).log()) / (2 * p)).sqrt()
    new = p * ratio
    wrong = (1 - new) / (1 - p)
    return BinaryStep(ratio, wrong, new, new, ratio.log() - wrong.log(), tau * new * (ratio - wrong))


def tilted(success: ArrayLike, tau: ArrayLike) -> BinaryStep:
    """Approximate PMD-mean for ``tau -> inf`` or vanishing p: the exponential tilt.

    Ratios of PMD-part; ``lambda = KL(old || tilted)``, which tends to ``Var(r) / 2 tau^2`` as tau grows.
    """
    step = pmd_part(_two_classes(success), (1.0, 0.0), tau)
    exact, lam = _of(step), step.kl_old_new
    _, tau = _pair(success, tau)
    share = tau * lam * (exact.ratio_correct - exact.ratio_incorrect)
    return BinaryStep(exact.ratio_correct, exact.ratio_incorrect, lam, exact.success, exact.logit_gain, share)


def _pair(success: ArrayLike, tau: ArrayLike) -> tuple[Tensor, Tensor]:
    p, temperature = as_tensor(success), as_tensor(tau)
    if not bool(((p > 0) & (p < 1)).all()):
        raise ValueError("success must lie strictly between 0 and 1")
    if not bool(((temperature > 0) & torch.isfinite(temperature)).all()):
        raise ValueError("tau must be positive and finite")
    p, temperature = torch.broadcast_tensors(p, temperature)  # type: ignore[no-untyped-call]
    return p, temperature


def _two_classes(success: ArrayLike) -> Tensor:
    p, _ = _pair(success, 1.0)
    return torch.stack([p, 1 - p], -1)


def _of(step: MirrorStep) -> BinaryStep:
    gain = step.log_ratio[..., 0] - step.log_ratio[..., 1]
    return BinaryStep(step.ratio[..., 0], step.ratio[..., 1], step.lam, step.probs[..., 0], gain, step.chi2_share)

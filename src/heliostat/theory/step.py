"""Exact mirror-descent steps on a finite action set: the limits of the regression objectives.

    minimise  1/2 E_old[(log rho - t)^2 / l]   subject to   E_old[rho] = 1,      t = (r - b) / tau

The baseline b picks the method: PMD-part subtracts the log-partition and meets its target exactly (lambda = 0),
PMD-mean subtracts the mean reward, which over-promises mass, so a multiplier lambda > 0 holds the ratios down:

    log rho + lambda l rho = t,      rho = W0(lambda l e^t) / (lambda l)

Every answer comes with a certificate: the residuals of the identities that hold at the optimum and nowhere else.

Left out: function approximation, sampling noise (``theory.finite``), repeated steps (``theory.convergence``).
The theorems are a reconstruction: of arXiv 2602.05933 only the abstract, section list and code were available.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.arrays import as_tensor
from heliostat.theory.certificate import Fit, MirrorStep, certify
from heliostat.theory.instance import ArrayLike, make_instance
from heliostat.theory.loophole import solve_loophole
from heliostat.theory.multiplier import log_partition_of_centred, log_ratio_at, solve_log_lambda

AT_PARTITION = 1e-14  # a baseline this close to the log-partition, in rounding errors of both, counts as equal to it


def pmd_mean(
    probs: ArrayLike | None,
    rewards: ArrayLike,
    tau: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    log_probs: ArrayLike | None = None,
) -> MirrorStep:
    """Solve the step that PMD-mean's regression converges to.

    ``rho = W0(lambda l e^{(r - mean r) / tau}) / (lambda l)``, with lambda set by ``E_old[rho] = 1``

    Args:
        probs: old policy ``[*batch, action]``, summing to one within 1e-6; ``None`` if ``log_probs`` is given.
            Actions of probability zero keep it, and their ratio is reported as one.
        rewards: ``[*batch, action]``, any finite unit.
        tau: temperature in the rewards' unit per nat, positive; a number or ``[*batch]``.
        lengths: positive weights l dividing each action's squared loss (sequence lengths); ``None``: all one.
        log_probs: the old policy in nats, for probabilities below 1e-308.

    Returns:
        The step with its certificate. ``lam`` is relatively accurate even where it is 1e-300.

    Raises:
        ValueError: empty action set, unnormalised or negative probabilities, non-finite rewards, tau or lengths not
            positive, shapes that do not broadcast.
        ArithmeticError: the multiplier's root-finder did not settle.

    **Limits**: equal rewards: the old policy, ``lam = 0``. ``tau -> inf``: the exponential tilt (PMD-part), with
    ``lam -> Var(r) / 2 tau^2``. ``l = 1``: ``lam = KL(old || new)``. Leave-one-out over n rollouts is
    ``tau -> tau (n - 1) / n``.

    References: Xu, Lu, Yu and Zhao (2026), arXiv 2602.05933 (reconstruction); Kimi k1.5, arXiv 2501.12599.
    """
    instance = make_instance(probs, rewards, tau, lengths, log_probs=log_probs)
    mean_target = torch.zeros_like(instance.mean_reward)
    return certify(instance, fit_targets(instance.log_probs, instance.mean_target, instance.log_lengths, mean_target))


def pmd_part(
    probs: ArrayLike | None, rewards: ArrayLike, tau: ArrayLike, *, log_probs: ArrayLike | None = None
) -> MirrorStep:
    """Solve the exact KL-regularised step, which PMD-part's regression meets without a multiplier.

    ``rho = e^{r / tau} / Z``, with ``Z = E_old[e^{r / tau}]``

    Args and Raises as in ``pmd_mean``. There are no lengths: a target that can be met is met under any weights.

    **Limits**: ``tau -> inf``: the old policy. ``tau -> 0``: the old policy restricted to its best actions. Binary
    rewards: the log-odds of success rise by exactly ``1 / tau``.

    References: Kimi k1.5, arXiv 2501.12599; Xu, Lu, Yu and Zhao (2026), arXiv 2602.05933 (reconstruction).
    """
    instance = make_instance(probs, rewards, tau, log_probs=log_probs)
    log_partition = log_partition_of_centred(instance.log_probs, instance.mean_target)
    targets = torch.where(instance.support, instance.mean_target - log_partition[..., None], 0.0)
    nothing = torch.zeros_like(log_partition)
    return certify(instance, Fit(targets, -log_partition, targets, nothing, nothing.log()))


def pmd_baseline(
    probs: ArrayLike | None,
    rewards: ArrayLike,
    tau: ArrayLike,
    baseline: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    log_probs: ArrayLike | None = None,
) -> MirrorStep:
    """Solve the step for any baseline b, from below the mean to above the log-partition.

    ``t = (r - b) / tau``; ``sign lambda = sign(tau log Z - b)``

    Args:
        baseline: b in reward units; a number or ``[*batch]``. Others as in ``pmd_mean``.

    Returns:
        The step. **Read ``lam`` first.** Below ``tau log Z`` it is positive and the optimum is unique. Above it lam is
        negative and the step is the *loophole*: missing mass hidden on the action where it costs least, whatever its
        reward. That optimum exists on a finite support, but need not be unique and depends on how actions are split
        (``theory.loophole``).

    Raises:
        As ``pmd_mean``; also ValueError if the baseline is not finite or does not broadcast.

    **Limits**: ``b = mean r`` is PMD-mean, ``b = tau log Z`` is PMD-part with ``lam = 0``.

    References: reconstruction of the setting of arXiv 2602.05933; the loophole is derived here.
    """
    instance = make_instance(probs, rewards, tau, lengths, log_probs=log_probs)
    offset = as_tensor(baseline)
    if not torch.isfinite(offset).all():
        raise ValueError("the baseline must be finite; got a NaN or an infinity")
    try:
        batch = torch.broadcast_shapes(instance.tau.shape, offset.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"the baseline has shape {tuple(offset.shape)}; it needs one value, or one per batch entry "
            f"{tuple(instance.tau.shape)}"
        ) from None
    instance = make_instance(probs, rewards, instance.tau.expand(batch), lengths, log_probs=log_probs)
    mean_target = (instance.mean_reward - offset) / instance.tau
    targets = instance.mean_target + mean_target[..., None]
    return certify(instance, fit_targets(instance.log_probs, targets, instance.log_lengths, mean_target))


def fit_targets(
    log_probs: Float[Tensor, "*batch action"],
    targets: Float[Tensor, "*batch action"],
    log_lengths: Float[Tensor, "*batch action"],
    mean_target: Float[Tensor, "*batch"],
) -> Fit:
    """Fit any targets by normalised least squares; each batch entry goes to the solver of its sign of lambda.

    Args:
        log_probs: normalised old policy.
        targets: ``t``; made 0 outside the support.
        log_lengths: log of the weights l.
        mean_target: ``E_old[t]``, given because PMD-mean knows it to be exactly zero.
    """
    targets = torch.where(torch.isneginf(log_probs), 0.0, targets)
    shape = targets.shape
    logp, t, log_l = (x.reshape(-1, shape[-1]) for x in (log_probs, targets, log_lengths))
    mean_t = mean_target.reshape(-1)
    partition = log_partition_of_centred(logp, torch.where(torch.isneginf(logp), 0.0, t - mean_t[:, None]))
    noise = torch.maximum(mean_t.abs(), partition) + t.abs().amax(-1) * partition.clamp(max=1.0)
    exact = torch.where(mean_t == 0, (t == 0).all(-1), (partition + mean_t).abs() <= AT_PARTITION * noise)
    upper = ~exact & ((mean_t >= 0) | (partition + mean_t > 0))
    lower = ~exact & ~upper
    s, log_size = t.clone(), torch.full_like(mean_t, -torch.inf)
    if upper.any():
        log_size[upper] = solve_log_lambda(logp[upper], t[upper], log_l[upper], mean_t[upper])
        s[upper] = log_ratio_at(log_size[upper], t[upper], log_l[upper])[0]
    if lower.any():
        s[lower], log_size[lower] = solve_loophole(logp[lower], t[lower], log_l[lower])
    s = torch.where(torch.isneginf(logp), 0.0, s).reshape(shape)
    sign = (upper.double() - lower.double()).reshape(shape[:-1])
    return Fit(targets, mean_target, s, sign, log_size.reshape(shape[:-1]))

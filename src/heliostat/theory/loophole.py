"""Targets that ask for less mass than a policy has: the loophole of a baseline above the log-partition.

With ``E_old[e^t] < 1`` the fit cannot follow its targets down, because probabilities must still sum to one. The
multiplier turns negative, ``s = t + w`` with ``w e^-w = mu l e^t`` and ``mu = -lambda``, and the problem is no longer
convex: the missing mass is cheapest to hide on a rare action, whose squared error hardly counts, whatever its reward.

On a finite support an optimum always exists. The second-order condition allows at most one action to sit
beyond the fold (``w > 1``), so the optimum is found by trying each action in that place. It need not be unique (two
equally rare actions are equally good hiding places: the first one is returned), it does not survive splitting an
action in two, and as the rarest probability goes to zero its cost does too: with infinitely many actions there is no
optimum, only a policy that drifts ever further out.

The cost is at worst quadratic in the number of actions. Left out: the second-best hiding places.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.lambert import lambertw_neg_exp

NUM_GRID_POINTS = 96  # cells in which a crossing of "total mass = 1" is looked for
MAX_REFINEMENTS = 80  # Newton steps and bisections within a cell; bisections alone would need 60


def solve_loophole(
    log_probs: Float[Tensor, "row action"],
    targets: Float[Tensor, "row action"],
    log_lengths: Float[Tensor, "row action"],
) -> tuple[Float[Tensor, "row action"], Float[Tensor, " row"]]:
    """Find the cheapest normalised fit to targets with ``log E_old[e^t] < 0``.

    Returns:
        ``s = log ratio`` (0 outside the support) and ``log mu``, where ``mu = -lambda > 0``.

    Raises:
        ArithmeticError: no action offers a stationary point (never seen; the optimum exists on a finite support).
    """
    weight = (log_probs - log_lengths).exp()
    best_loss = torch.full(log_probs.shape[:-1], torch.inf, dtype=torch.float64)
    best_x, best_action = torch.zeros_like(best_loss), torch.zeros_like(best_loss, dtype=torch.long)
    for action in weight.mean(0).argsort(stable=True).tolist():  # the rarest first: they take the excess most cheaply
        floor = 0.5 * weight[:, action] * _Curve(log_probs, targets, log_lengths, action).low ** 2
        rows = (floor <= best_loss) & ~torch.isneginf(log_probs[:, action])
        if not rows.any():
            continue
        curve = _Curve(log_probs[rows], targets[rows], log_lengths[rows], action)
        x, found = curve.cheapest_crossing()
        loss = torch.where(found, curve.loss(x[:, None])[:, 0], torch.inf)
        # A tie up to rounding goes to the first action, so that the answer does not depend on the last bit.
        best = best_loss[rows]
        tied = ((loss - best).abs() <= 1e-12 * best) & (action < best_action[rows])
        better = torch.where(torch.isfinite(best), (loss < best * (1 - 1e-12)) | tied, found)
        best_loss[rows] = torch.where(better, loss, best)
        best_x[rows] = torch.where(better, x, best_x[rows])
        best_action[rows] = torch.where(better, action, best_action[rows])
    if not torch.isfinite(best_loss).all():
        raise ArithmeticError("no stationary point was found for a baseline above the log-partition")
    return _assemble(log_probs, targets, log_lengths, best_x, best_action)


class _Curve:
    """Stationary points with one ``action`` free: ``x = s - t`` of that action fixes mu, and mu fixes all others.

    ``x < 1`` is the ordinary branch and ``x > 1`` lies beyond the fold; from ``low`` on, the others have a solution.
    Total mass is one at the points we look for; where it crosses one upwards in x, the point is a local minimum
    (second-order condition).
    """

    def __init__(self, log_probs: Tensor, targets: Tensor, log_lengths: Tensor, action: int) -> None:
        self.log_probs, self.targets, self.log_lengths, self.action = log_probs, targets, log_lengths, action
        height = torch.where(torch.isneginf(log_probs), -torch.inf, log_lengths + targets)
        self.own = height[:, action].nan_to_num(neginf=0.0)
        others = height.clone()
        others[:, action] = -torch.inf
        self.others = others
        gap = others.amax(-1) - self.own
        self.low = torch.where(gap > 0, _beyond_fold(-1 - gap.clamp(min=0.0)), 0.0)

    def log_mu(self, x: Tensor) -> Tensor:
        return x.log() - x - self.own[:, None]

    def parts(self, x: Tensor) -> Tensor:
        """Compute ``w`` of every action at every x: ``[row, point, action]``."""
        v = self.log_mu(x)[..., None] + self.others[:, None, :]
        w = lambertw_neg_exp(v.clamp(max=-1.0))
        w[..., self.action] = x
        return w

    def mass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute total mass at every x, and its derivative in x (not finite where another action is at its fold)."""
        w = self.parts(x)
        new = (self.log_probs[:, None, :] + self.targets[:, None, :] + w).exp()
        # mu falls beyond x = 1, and the others follow it: d log mu / dx = 1/x - 1, d log rho / d log mu = w / (1 - w).
        follow = new * w / (1 - w)
        follow[..., self.action] = 0.0
        return new.sum(-1), new[..., self.action] + (1 / x - 1) * follow.sum(-1)

    def loss(self, x: Tensor) -> Tensor:
        weight = (self.log_probs - self.log_lengths).exp()[:, None, :]
        return 0.5 * (weight * self.parts(x) ** 2).sum(-1)

    def cheapest_crossing(self) -> tuple[Tensor, Tensor]:
        """Find the best point per row at which total mass reaches one from below, and whether there is any."""
        low = self.low
        # Where the action alone would hold all mass; the slack keeps a root at the very end inside.
        high = -(self.log_probs + self.targets)[:, self.action] + 1e-6
        exists = torch.isfinite(high) & (high > low)
        high = torch.where(exists, high, low + 1)
        fractions = torch.linspace(0, 1, NUM_GRID_POINTS + 1, dtype=torch.float64)
        grid = low[:, None] + (high - low)[:, None] * fractions
        grid[:, 0] = torch.maximum(grid[:, 0], 1e-12 * grid[:, 1])
        above = self.mass(grid)[0] >= 1
        upward = ~above[:, :-1] & above[:, 1:]
        cell = torch.where(upward, self.loss(grid[:, 1:]), torch.inf).argmin(-1, keepdim=True)
        x = self._refine(grid.gather(1, cell), grid.gather(1, cell + 1))
        return x, exists & upward.any(-1)

    def _refine(self, left: Tensor, right: Tensor) -> Tensor:
        x = 0.5 * (left + right)
        for _ in range(MAX_REFINEMENTS):
            mass, slope = self.mass(x)
            left, right = torch.where(mass < 1, x, left), torch.where(mass < 1, right, x)
            newton = x - (mass - 1) / slope
            inside = (newton > left) & (newton < right) & (slope > 0)
            step = torch.where(inside, newton, 0.5 * (left + right)) - x
            x = x + step
            if bool((step.abs() <= 1e-15 * x).all()):
                break
        return x[:, 0]


def _assemble(
    log_probs: Tensor, targets: Tensor, log_lengths: Tensor, x: Tensor, action: Tensor
) -> tuple[Tensor, Tensor]:
    height = log_lengths + targets
    log_mu = x.log() - x - height.gather(-1, action[:, None])[:, 0]
    w = lambertw_neg_exp((log_mu[:, None] + height).clamp(max=-1.0)).scatter(-1, action[:, None], x[:, None])
    support = ~torch.isneginf(log_probs)
    return torch.where(support, targets + w, 0.0), log_mu


def _beyond_fold(v: Tensor) -> Tensor:
    """Compute the larger solution of ``log x - x = v`` for ``v <= -1``: minus Lambert's W-1 of ``-e^v``."""
    x = 1 + (2 * (-1 - v)).sqrt() + (-1 - v)
    for _ in range(60):  # x = log x - v contracts, and starts above the root; Newton finishes it
        x = torch.where(x > 1, x - (x.log() - x - v) / (1 / x - 1), x).clamp(min=1.0)
    return x

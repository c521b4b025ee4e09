"""Eigenvalues of a Kronecker-sum precision from its two marginals: p + q numbers, convex, monotone, warm-startable.

    Σ_j 1/(l_i + r_j) = λ_i,      Σ_i 1/(l_i + r_j) = μ_j

are the stationarity conditions of f(l, r) = -Σ_ij log(l_i + r_j) + λ·l + μ·r, so 1/(l_i + r_j) is the analytic centre
of all positive matrices with those row and column sums: it exists and is unique for every positive λ, μ of equal sum.
The shift (l + c, r - c) changes nothing and is fixed by min l = min r, which makes both positive. Everything runs in
float64 whatever comes in, batched, on the device of λ. Left out: eigenvectors (``subspaces.kronecker``) and damping
(the caller's).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.cards import Card
from heliostat.linalg.gram import gram
from heliostat.linalg.logdet.newton import LogDet, minimize, solve_hessian
from heliostat.linalg.logdet.result import ConvergenceError

UNEQUAL_SUMS = 1e-3  # relative difference of Σλ and Σμ that is still averaged away (float32 statistics differ by 1e-6)
COARSENING, COARSEST = 4, 128**2  # how much smaller a problem gives a start, and entries up to which none does
START_MISMATCH = 1e-3


@dataclass(frozen=True, slots=True, repr=False)
class KroneckerSumEigenvalues(Card):
    """``left`` and ``right`` with 1/(left_i + right_j) summing to the marginals; all positive, min left = min right.

    Attributes:
        residual: largest relative mismatch of a marginal over the whole batch, of the float64 solution.
        num_steps: Newton steps taken.
    """

    left: Float[Tensor, "*batch p"]
    right: Float[Tensor, "*batch q"]
    residual: float
    num_steps: int


def kronecker_sum_from_marginals(
    lambda_: Float[Tensor, "*batch p"],
    mu: Float[Tensor, "*batch q"],
    warm_start: KroneckerSumEigenvalues | tuple[Tensor, Tensor] | None = None,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 100,
    polish: bool = True,
) -> KroneckerSumEigenvalues:
    """Solve Σ_j 1/(l_i + r_j) = λ_i and Σ_i 1/(l_i + r_j) = μ_j for l and r.

    Args:
        lambda_: eigenvalues of E[GGᵀ] for p x q gradients G, positive, any order.
        mu: eigenvalues of E[GᵀG], positive, with the same sum; differences up to 0.1 % are averaged away.
        warm_start: an earlier solution, in the same order of rows and columns; ignored where it is not feasible.
        tolerance: largest accepted relative mismatch of a marginal (of the float64 solution).
        max_steps: Newton steps before giving up.
        polish: go on to rounding; otherwise each member of the batch stops as soon as it meets ``tolerance``.

    Returns:
        l and r in the dtype of ``lambda_``, with the residual that was reached.

    Raises:
        ValueError: a marginal that is not positive and finite, shapes that do not match, or unequal sums.
        ConvergenceError: the tolerance was not reached; ``best`` holds the last, feasible, iterate.

    **Limits**: p = 1 gives l + r_j = 1/μ_j. Constant marginals give l_i + r_j = q/λ. (tλ, tμ) gives (l/t, r/t).
        Swapping the arguments swaps the answers. B = L⊗I + I⊗R recovers exactly from the marginals of its inverse.
    """
    _check(lambda_, mu)
    shape = lambda_.shape[:-1]
    rows, cols = (side.detach().to(torch.float64).reshape(-1, side.shape[-1]) for side in (lambda_, mu))
    total = (rows.sum(-1, keepdim=True) + cols.sum(-1, keepdim=True)) / 2
    rows, cols = rows * total / rows.sum(-1, keepdim=True), cols * total / cols.sum(-1, keepdim=True)
    scale = total / (rows.shape[-1] * cols.shape[-1])  # unit mean entry, so that thresholds mean the same for every A
    problem = _MarginalProblem(rows / scale, cols / scale)
    start = problem.start()
    if warm_start is not None:
        left, right = warm_start if isinstance(warm_start, tuple) else (warm_start.left, warm_start.right)
        start = problem.choose(torch.cat([left, right], -1).to(rows).reshape(len(rows), -1) * scale, start)
    is_done = None if polish else lambda gradient: problem.mismatch(gradient) <= tolerance
    found = minimize(problem, start, problem.direction, max_steps, is_done=is_done)
    residual = float(problem.mismatch(problem.gradient(found.point)).max())
    left, right = problem.balanced(found.x)
    solution = KroneckerSumEigenvalues(
        (left / scale).reshape(*shape, -1).to(lambda_.dtype),
        (right / scale).reshape(*shape, -1).to(mu.dtype),
        residual,
        found.num_steps,
    )
    if not residual <= tolerance:
        raise ConvergenceError(
            f"the Kronecker-sum marginals are met to {residual:.1e} only (asked: {tolerance:.1e}) after "
            f"{found.num_steps} Newton steps; damp the marginals or raise the tolerance",
            solution,
        )
    return solution


def _check(rows: Tensor, cols: Tensor) -> None:
    if not rows.ndim or not cols.ndim or rows.shape[:-1] != cols.shape[:-1]:
        raise ValueError(f"marginals need equal batch axes, got shapes {tuple(rows.shape)} and {tuple(cols.shape)}")
    if not (rows.is_floating_point() and cols.is_floating_point()):
        raise ValueError(f"marginals must be floating point, got {rows.dtype} and {cols.dtype}")
    for name, side in (("lambda_", rows), ("mu", cols)):
        if not side.numel() or not bool(torch.isfinite(side).all()) or float(side.min()) <= 0:
            smallest = f"{float(side.min()):.3g}" if side.numel() else "none"
            raise ValueError(f"{name} must be positive and finite (smallest entry {smallest}); damp the marginal")
    sums = rows.double().sum(-1), cols.double().sum(-1)
    mismatch = float(((sums[0] - sums[1]).abs() / sums[0]).max())
    if mismatch > UNEQUAL_SUMS:
        raise ValueError(f"both marginals of one matrix have its trace as sum; these differ by {mismatch:.2%}")


class _MarginalProblem:
    """-Σ log(l_i + r_j) + λ·l + μ·r over x = (l, r)."""

    def __init__(self, rows: Tensor, cols: Tensor) -> None:
        self.rows, self.cols, self.p = rows, cols, rows.shape[-1]
        self.linear = torch.cat([rows, cols], -1)

    def _sums(self, x: Tensor) -> Tensor:
        return x[:, : self.p, None] + x[:, None, self.p :]

    def evaluate(self, x: Tensor) -> LogDet:
        """Return the point, with the matrix of all 1/(l_i + r_j) as its factor."""
        entries = self._sums(x).reciprocal_()
        smallest = entries.amin((-2, -1))
        value = entries.clamp(min=1e-300).log_().sum((-2, -1)) + (self.linear * x).sum(-1)
        return LogDet(x, torch.where(smallest > 0, value, torch.inf), entries)

    def gradient(self, point: LogDet) -> Tensor:
        return self.linear - torch.cat([point.factor.sum(-1), point.factor.sum(-2)], -1)

    def mismatch(self, gradient: Tensor) -> Tensor:
        """Largest relative mismatch of a marginal, per member of the batch."""
        return (gradient / self.linear).abs().amax(-1)

    def direction(self, point: LogDet, gradient: Tensor, forcing: Tensor) -> Tensor:
        """Newton by the Schur complement onto the shorter side, which is the Laplacian of a weighted graph.

        The Laplacian is grounded at the shorter side's largest marginal, so that the smallest eigenvalue there stands
        still: a gauge that moved it together with the largest would cost it all their digits.
        """
        del forcing
        curvature, split = point.factor**2, self.p
        g_long, g_short = gradient[:, :split], gradient[:, split:]
        flipped = split < gradient.shape[-1] - split
        if flipped:
            curvature, g_long, g_short = curvature.mT, g_short, g_long
        degree = curvature.sum(-1)
        edges = gram(curvature / degree.sqrt()[:, :, None])
        edges.diagonal(dim1=-2, dim2=-1).zero_()
        laplacian = torch.diag_embed(edges.sum(-1)) - edges
        ground = torch.nn.functional.one_hot((self.rows if flipped else self.cols).argmax(-1), edges.shape[-1])
        lift = ground * torch.where(edges.sum(-1) > 0, edges.sum(-1), 1.0)
        rhs = torch.einsum("bij,bi->bj", curvature, g_long / degree) - g_short
        short = solve_hessian(laplacian + torch.diag_embed(lift), rhs)
        long = -(g_long + torch.einsum("bij,bj->bi", curvature, short)) / degree
        return torch.cat([short, long] if flipped else [long, short], -1)

    def start(self) -> Tensor:
        """Solve a problem with a fourth of the rows and columns, where this one is large; else return ``cold_start``.

        l_i depends on i through λ_i alone, and smoothly: it is solved for on means of neighbouring marginals and
        interpolated, log l over log λ. A few Newton steps of the small problem replace as many of the large.
        """
        cold, sides = self.cold_start(), (self.rows, self.cols)
        num = [side.shape[-1] // COARSENING for side in sides]
        if self.p * sides[1].shape[-1] <= COARSEST or min(num) < COARSENING:
            return cold
        means = [torch.nn.functional.adaptive_avg_pool1d(s.sort(-1).values, n) for s, n in zip(sides, num, strict=True)]
        small = _MarginalProblem(*(m * (num[0] * num[1] / m.sum(-1, keepdim=True)) for m in means))
        found = minimize(small, small.start(), small.direction, is_done=lambda g: small.mismatch(g) < START_MISMATCH)
        solved = small.balanced(found.x)
        fine = [_interpolated(s.log(), m.log(), x.log()) for s, m, x in zip(sides, means, solved, strict=True)]
        positive = torch.cat(fine, -1).exp()
        return torch.where(positive.isfinite().all(-1, keepdim=True), self._scaled(positive), cold)

    def cold_start(self) -> Tensor:
        """l_i = q/(2λ_i), r_j = p/(2μ_j): exact for constant marginals."""
        p, q = self.p, self.cols.shape[-1]
        return self._scaled(torch.cat([q / (2 * self.rows), p / (2 * self.cols)], -1))

    def _scaled(self, x: Tensor) -> Tensor:
        """Return the best multiple of a feasible point: f(t x) is least where t (λ·l + μ·r) = p q."""
        size = self.p * self.cols.shape[-1]
        return x * size / (self.linear * x).sum(-1, keepdim=True)

    def choose(self, candidate: Tensor, otherwise: Tensor) -> Tensor:
        """Per member of the batch, the candidate where it is feasible and lower."""
        usable = (self._sums(candidate) > 0).all(-1).all(-1) & candidate.isfinite().all(-1)
        candidate = self._scaled(torch.where(usable[:, None], candidate, otherwise))
        better = self.evaluate(candidate).value <= self.evaluate(otherwise).value
        return torch.where(better[:, None], candidate, otherwise)

    def balanced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = x[:, : self.p], x[:, self.p :]
        shift = (right.amin(-1, keepdim=True) - left.amin(-1, keepdim=True)) / 2
        return left + shift, right - shift


def _interpolated(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear in ``at``; beyond the outer knots as between the last two. Knots ascend, batched alike."""
    left = (torch.searchsorted(knots, at.contiguous()) - 1).clamp(0, knots.shape[-1] - 2)
    x0, x1, y0, y1 = (side.gather(-1, index) for side in (knots, values) for index in (left, left + 1))
    gap = x1 - x0
    share = torch.where(gap > 0, (at - x0) / torch.where(gap > 0, gap, 1.0), 0.0)
    return y0 + share * (y1 - y0)

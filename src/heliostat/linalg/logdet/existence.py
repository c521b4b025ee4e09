"""Existence of the decomposition: S must contain no positive semidefinite direction, else one is the witness.

By the theorem of alternatives exactly one holds: S⊥ contains a positive definite matrix, or S contains a nonzero
positive semidefinite one. Both searches below are Newton runs that end with one of the two in hand:

    primal     -log det(A - C) falls without bound; then -C/‖C‖ tends to the witness, as A - C ≻ 0 bounds it below
    phase one  n t - log det(B(y) + t I) reaches t < 0, and B(y) ≻ 0; or (B + t I)⁻¹ tends to the witness

Left out: the solution itself (``newton``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet.bases import Basis
from heliostat.linalg.logdet.newton import LogDet, LogDetProblem, minimize
from heliostat.linalg.logdet.subspaces.base import Subspace

GROWN = 1e3  # ‖C‖/‖A‖ above which the direction of the last step is checked
FLAT = 1e-9  # smallest eigenvalue, relative to the largest, that such a direction may have as a witness
UNBOUNDED = 1e10  # ‖C‖/‖A‖ beyond which -C/‖C‖ is positive semidefinite to 1e-10
SMALL = 60  # rows up to which a basis of S is cheap whatever its dimension
SEMIDEFINITE = 1e-7  # smallest eigenvalue, relative to the largest, that phase one accepts in a witness


class DegenerateSubspaceError(ValueError):
    """S contains a positive semidefinite direction, so A = B⁻¹ + C has no solution; ``witness`` is that direction."""

    def __init__(self, witness: Float[Tensor, "n n"]) -> None:
        eigenvalues = torch.linalg.eigvalsh(witness)
        super().__init__(
            "the decomposition does not exist: the subspace of C contains a positive semidefinite matrix (attribute "
            f"`witness`, eigenvalues {float(eigenvalues[0]):.2g} to {float(eigenvalues[-1]):.2g}), so no positive "
            "definite B is orthogonal to it"
        )
        self.witness = witness


class PrimalWatch:
    """Called with every primal iterate; raises once C runs away along a semidefinite direction.

    Where a solution exists, C stays within a multiple of A that is the condition number of the best B in S⊥. Past
    ``GROWN`` the last step's direction is tested, past ``UNBOUNDED`` C itself is a witness by A - C ≻ 0.
    """

    def __init__(self, problem: LogDetProblem) -> None:
        assert problem.offset is not None
        self.problem, self.scale = problem, torch.linalg.matrix_norm(problem.offset)
        self.previous: Tensor | None = None

    def __call__(self, point: LogDet) -> None:
        grown = self.problem.basis.combine(point.x)  # -C
        size = torch.linalg.matrix_norm(grown) / self.scale
        index = int(size.argmax())
        if size[index] > GROWN and self.previous is not None:
            step = grown[index] - self.previous[index]
            eigenvalues = torch.linalg.eigvalsh(step)
            if eigenvalues[-1] > 0 and eigenvalues[0] >= -FLAT * eigenvalues[-1]:
                raise DegenerateSubspaceError(step / step.norm())
        if size[index] > UNBOUNDED:
            raise DegenerateSubspaceError(grown[index] / grown[index].norm())
        self.previous = grown


class _WithIdentity(Basis):
    """A basis with the identity as one more element."""

    def __init__(self, basis: Basis) -> None:
        self.inside, self.n, self.size = basis, basis.n, basis.size + 1

    def combine(self, y: Tensor) -> Tensor:
        return self.inside.combine(y[:, :-1]) + y[:, -1:, None] * torch.eye(self.n, dtype=y.dtype, device=y.device)

    def inner(self, matrix: Tensor) -> Tensor:
        trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return torch.cat([self.inside.inner(matrix), trace], -1)

    def hessian(self, weight: Tensor) -> Tensor:
        edge = self.inner(weight @ weight)
        top = torch.cat([self.inside.hessian(weight), edge[:, :-1, None]], 2)
        return torch.cat([top, edge[:, None, :]], 1)


class _Found(Exception):
    """Phase one crossed t = 0."""


def positive_definite_member(subspace: Subspace, device: torch.device) -> Float[Tensor, "n n"]:
    """Find a positive definite B ∈ S⊥.

    Raises:
        DegenerateSubspaceError: there is none.
        ValueError: S⊥ comes too close to having none for float64 to tell.
    """
    eye = torch.eye(subspace.n, dtype=torch.float64, device=device)
    projected = subspace.project_complement_stack(eye[None])[0]
    if bool(torch.linalg.cholesky_ex(projected - 1e-8 * eye).info == 0):
        return projected
    if subspace.n <= SMALL or subspace.dimension <= subspace.codimension:
        return _centre(subspace, eye)
    return _phase_one(subspace, eye)


def restore_definiteness(
    precision: Float[Tensor, "batch n n"], covariance: Float[Tensor, "batch n n"], subspace: Subspace
) -> Float[Tensor, "batch n n"]:
    """B unchanged where it is positive definite; else moved as little as needed towards a safe member of S⊥.

    Only rounding makes this necessary: an answer of condition 1e12 may lose its definiteness when it is projected.
    """
    lost = torch.linalg.cholesky_ex(precision).info != 0
    if not bool(lost.any()):
        return precision
    share = torch.where(lost, 1e-16, 0.0).to(precision)[:, None, None]
    member = positive_definite_member(subspace, precision.device)
    member = member * (subspace.n / (covariance * member).sum((-2, -1)))[:, None, None]
    repaired = torch.where(precision.isfinite().all(-1).all(-1)[:, None, None], precision, member)
    while bool(lost.any()):
        share = torch.where(lost[:, None, None], (10 * share).clamp(max=1.0), share)
        mixed = (1 - share) * repaired + share * member
        lost = (torch.linalg.cholesky_ex(mixed).info != 0) & (share[:, 0, 0] < 1)
    return mixed


def _centre(subspace: Subspace, eye: Tensor) -> Tensor:
    """B of the decomposition of the identity, by the primal: the best-conditioned kind of member there is."""
    problem = LogDetProblem(subspace.basis, offset=eye[None])
    start = eye.new_zeros(1, subspace.dimension)
    found = minimize(problem, start, problem.dense_direction, max_steps=300, watch=PrimalWatch(problem))
    member = subspace.project_complement_stack(found.point.inverse)[0]
    if not bool(torch.linalg.cholesky_ex(member).info == 0):
        raise _undecided()
    return member


def _undecided() -> ValueError:
    return ValueError(
        "could not decide whether the decomposition exists: the complement of the subspace touches the positive "
        "definite matrices only within rounding; pass start= with a positive definite B in it"
    )


def _phase_one(subspace: Subspace, eye: Tensor) -> Tensor:
    """Minimise n t - log det(B(y) + t I) until t < 0 or B(y) is positive definite by itself."""
    basis = _WithIdentity(subspace.complement_basis)
    linear = eye.new_zeros(1, basis.size)
    linear[0, -1] = subspace.n
    start = linear / subspace.n
    problem = LogDetProblem(basis, linear)
    found: list[Tensor] = []

    def watch(point: LogDet) -> None:
        candidate = subspace.complement_basis.combine(point.x[:, :-1])[0]
        candidate = candidate / candidate.norm().clamp(min=1e-300)
        if float(point.x[0, -1]) < 0 or bool(torch.linalg.cholesky_ex(candidate - 1e-8 * eye).info == 0):
            found.append(candidate)
            raise _Found

    try:
        end = minimize(problem, start, problem.dense_direction, max_steps=300, watch=watch)
    except _Found:
        return found[0]
    witness = subspace.project_stack(end.point.inverse)[0]
    witness = witness / witness.norm()
    eigenvalues = torch.linalg.eigvalsh(witness)
    if bool(eigenvalues[0] >= -SEMIDEFINITE * eigenvalues[-1]):
        raise DegenerateSubspaceError(witness)
    raise _undecided()

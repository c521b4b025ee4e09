"""The methods of the entry point, by name, and the order in which they are tried.

Every method takes a checked float64 stack A and a subspace and returns B ∈ S⊥, or ``None`` where it does not apply.
``auto`` tries them from cheapest to most general; the switch sizes are measured (docs/how-to/inverse-decomposition.md).
Left out: checking A (``inputs``) and judging B (``certificate``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.linalg.logdet import small
from heliostat.linalg.logdet.existence import DegenerateSubspaceError, PrimalWatch
from heliostat.linalg.logdet.newton import LogDetProblem, Minimum, minimize
from heliostat.linalg.logdet.schur import reduce_and_lift
from heliostat.linalg.logdet.starts import dual_start
from heliostat.linalg.logdet.subspaces.base import Subspace
from heliostat.linalg.logdet.subspaces.pattern import SparsityPattern

ASSEMBLED_HESSIAN = 200  # parameters up to which the dense Hessian is cheaper than conjugate gradients


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the caller: a positive definite B ∈ S⊥ to start from, and when to give up."""

    start: Float[Tensor, "batch n n"] | None = None
    max_steps: int = 200


@dataclass(frozen=True, slots=True)
class Solution:
    """B with the method that found it."""

    B: Float[Tensor, "batch n n"]
    iterations: int
    method: str


Method = Callable[[Tensor, Subspace, Options], Solution | None]


def closed_form(covariance: Tensor, subspace: Subspace, options: Options) -> Solution | None:
    """Compute B without n-sized iteration: chordal patterns, Kronecker sums, exchangeable blocks, S = {0}."""
    del options
    if subspace.dimension == 0:
        return Solution(torch.cholesky_inverse(torch.linalg.cholesky(covariance)), 0, "closed_form")
    answer = subspace.closed_form(covariance)
    return None if answer is None else Solution(answer, 0, "closed_form")


def screened(covariance: Tensor, subspace: Subspace, options: Options) -> Solution | None:
    """Drop pattern edges between parts that A, on the pattern, does not connect: B is block-diagonal over them."""
    if not isinstance(subspace, SparsityPattern):
        return None
    present = (covariance[:, subspace.edges[0], subspace.edges[1]] != 0).any(0).cpu().numpy()
    if present.all():
        return None
    smaller = subspace.without_bridged_parts(present)
    if smaller.num_edges == subspace.num_edges:
        return None
    answer = auto(covariance, smaller, options)
    return answer and replace(answer, method=f"screened+{answer.method}")


def schur(covariance: Tensor, subspace: Subspace, options: Options) -> Solution | None:
    """Eliminate the rows that C cannot touch, where those are at least half."""
    touched = subspace.touched()
    if not len(touched) or 2 * len(touched) > subspace.n or options.start is not None:
        return None
    inside: list[Solution] = []

    def solve(reduced: Tensor) -> Tensor:
        try:
            found = auto(reduced, subspace.restricted(touched), options)
        except DegenerateSubspaceError as error:
            whole = torch.zeros(subspace.n, subspace.n, dtype=torch.float64)
            whole[touched[:, None], touched] = error.witness.cpu()
            raise DegenerateSubspaceError(whole) from None
        assert found is not None
        inside.append(found)
        return found.B

    answer = subspace.project_complement_stack(reduce_and_lift(covariance, touched, solve))
    return Solution(answer, inside[0].iterations, f"schur+{inside[0].method}")


def dual_newton(covariance: Tensor, subspace: Subspace, options: Options) -> Solution:
    """Newton over the parameters of B with the assembled Hessian."""
    return _dual(covariance, subspace, options, "dual_newton")


def dual_newton_cg(covariance: Tensor, subspace: Subspace, options: Options) -> Solution:
    """Newton over the parameters of B, each step by conjugate gradients."""
    return _dual(covariance, subspace, options, "dual_newton_cg")


def primal_newton(covariance: Tensor, subspace: Subspace, options: Options) -> Solution:
    """Newton over the parameters of C with the assembled Hessian; starts at C = 0."""
    return _primal(covariance, subspace, options, "primal_newton")


def primal_newton_cg(covariance: Tensor, subspace: Subspace, options: Options) -> Solution:
    """Newton over the parameters of C, each step by conjugate gradients."""
    return _primal(covariance, subspace, options, "primal_newton_cg")


def auto(covariance: Tensor, subspace: Subspace, options: Options) -> Solution | None:
    """Return the cheapest method that applies."""
    if options.start is None:
        for method in (closed_form, screened, schur):
            answer = method(covariance, subspace, options)
            if answer is not None:
                return answer
    on_dual = subspace.codimension <= subspace.dimension or options.start is not None
    size = subspace.codimension if on_dual else subspace.dimension
    assembled = size <= ASSEMBLED_HESSIAN
    if on_dual:
        return (dual_newton if assembled else dual_newton_cg)(covariance, subspace, options)
    return (primal_newton if assembled else primal_newton_cg)(covariance, subspace, options)


METHODS: dict[str, Method] = {
    "auto": auto,
    "closed_form": closed_form,
    "schur": schur,
    "dual_newton": dual_newton,
    "dual_newton_cg": dual_newton_cg,
    "primal_newton": primal_newton,
    "primal_newton_cg": primal_newton_cg,
}


def _dual(covariance: Tensor, subspace: Subspace, options: Options, method: str) -> Solution:
    basis = subspace.complement_basis
    problem = LogDetProblem(basis, linear=basis.inner(covariance))
    if options.start is not None:
        start = basis.coordinates(options.start).expand(len(covariance), -1)
    else:
        start = dual_start(covariance, subspace)
    found = _minimize(problem, start, method, options)
    return Solution(basis.combine(found.x), found.num_steps, method)


def _primal(covariance: Tensor, subspace: Subspace, options: Options, method: str) -> Solution:
    problem = LogDetProblem(subspace.basis, offset=covariance)
    start = covariance.new_zeros(len(covariance), subspace.dimension)
    watch = None if isinstance(subspace, SparsityPattern) else PrimalWatch(problem)  # I ∈ S⊥: a pattern's C stays
    found = _minimize(problem, start, method, options, watch)
    return Solution(subspace.project_complement_stack(found.point.inverse), found.num_steps, method)


def _minimize(
    problem: LogDetProblem, start: Tensor, method: str, options: Options, watch: PrimalWatch | None = None
) -> Minimum:
    by_cg = method.endswith("cg")
    if not by_cg and watch is None and small.applies(problem, start):
        return small.minimize(problem, start, options.max_steps)
    direction = problem.cg_direction if by_cg else problem.dense_direction
    return minimize(problem, start, direction, options.max_steps, watch)


def unit_scaling(covariance: Float[Tensor, "batch n n"], subspace: Subspace) -> Float[Tensor, "batch n"]:
    """Return d with D A D of unit diagonal where S allows it, else of unit mean diagonal; B is then D B_scaled D."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    if not subspace.rescales:
        diagonal = diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    return diagonal.rsqrt()

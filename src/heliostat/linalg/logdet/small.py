"""Damped Newton for one small problem on single entries, in numpy: torch's cost per call is most of the time there.

The iteration is that of ``newton.minimize`` for a batch of one, with its constants and stopping rules:

    minimise f(x) = -log det(M_0 + Σ x_k E_k) + a·x,      E_k = e_r e_cᵀ + e_c e_rᵀ or e_r e_rᵀ

Left out: batches, devices, derivatives, and any other basis (``newton``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from heliostat.linalg.logdet.bases import CoordinateBasis
from heliostat.linalg.logdet.newton import LAST_STEP, QUADRATIC, STALLED, LogDet, LogDetProblem, Minimum

MOST_PARAMETERS = 150  # up to which this beats ``newton.minimize`` on one CPU thread

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def applies(problem: LogDetProblem, start: Float[Tensor, "batch size"]) -> bool:
    """Return whether ``minimize`` takes this problem: one matrix on the CPU, few unknowns, each a single entry."""
    return (
        isinstance(problem.basis, CoordinateBasis)
        and start.device.type == "cpu"
        and len(start) == 1
        and problem.basis.size <= MOST_PARAMETERS
    )


def minimize(problem: LogDetProblem, start: Float[Tensor, "1 size"], max_steps: int) -> Minimum:
    """Minimize by damped Newton from a feasible start until rounding, like ``newton.minimize``.

    Raises:
        ValueError: the start is not feasible.
    """
    assert isinstance(problem.basis, CoordinateBasis)
    n, size = problem.basis.n, problem.basis.size
    offset = np.zeros((n, n)) if problem.offset is None else problem.offset[0].numpy()
    linear = np.zeros(size) if problem.linear is None else problem.linear[0].numpy()
    entries = EntryProblem(offset, *problem.basis.entries(), linear)
    point, num_steps, is_settled = entries.minimize(start[0].numpy(), max_steps)
    x, factor = torch.from_numpy(point.x)[None], torch.from_numpy(point.factor)[None]
    end = LogDet(x, torch.tensor([point.value], dtype=torch.float64), factor)
    return Minimum(end, num_steps, torch.tensor([is_settled]))


class Point(NamedTuple):
    """x, f(x), and the Cholesky factor of M(x) with its inverse."""

    x: Float[np.ndarray, " size"]
    value: float
    factor: Float[np.ndarray, "n n"]
    root: Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class EntryProblem:
    """f over the entries (rows, cols) of a symmetric matrix; ``offset`` is M_0 and ``linear`` is a."""

    offset: Float[np.ndarray, "n n"]
    rows: IntArray
    cols: IntArray
    linear: Float[np.ndarray, " size"]

    def evaluate(self, x: FloatArray) -> Point | None:
        """Return the point at x, or ``None`` where M(x) is not positive definite."""
        matrix = self.offset.copy()
        matrix[self.rows, self.cols] += x
        matrix[self.cols, self.rows] = matrix[self.rows, self.cols]
        try:
            factor = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None
        root = np.linalg.inv(factor)
        value = float(self.linear @ x - 2 * np.log(factor.diagonal()).sum())
        return Point(x, value, factor, root) if math.isfinite(value) else None

    def minimize(self, start: FloatArray, max_steps: int) -> tuple[Point, int, bool]:
        """Minimize until rounding; the last point, the steps taken, and whether they settled."""
        point = self.evaluate(start)
        if point is None:
            raise ValueError("Newton's start is not positive definite; pass a B in S⊥ that is")
        n = len(self.offset)
        pairs = _Pairs(*(a[:, None] * n + b for a in (self.rows, self.cols) for b in (self.rows, self.cols)))
        weight = np.where(self.rows == self.cols, 1.0, 2.0)
        both = weight[:, None] * (weight / 2)
        decrement = before = math.inf
        for step in range(1, max_steps + 1):
            inverse = point.root.T @ point.root
            gradient = self.linear - weight * inverse[self.rows, self.cols]
            direction = -_solve(both * pairs.products(inverse), gradient)
            earlier, before = max(before, decrement), decrement
            decrement = math.sqrt(max(0.0, -float(gradient @ direction)))
            is_at_floor = decrement < STALLED and decrement > earlier / 2
            moved = None if is_at_floor else self._search(point, direction, decrement)
            point = moved or point
            if moved is None or decrement <= LAST_STEP:
                return point, step, is_at_floor or decrement <= LAST_STEP
        return point, max_steps, False

    def _search(self, point: Point, direction: FloatArray, decrement: float) -> Point | None:
        """Halve from the full step down to 1/(1 + λ); ``None`` where only rounding is left to gain."""
        safe, step = 1 / (1 + decrement), 1.0
        while True:
            trial = self.evaluate(point.x + step * direction)
            if trial is not None and (
                decrement <= QUADRATIC or step <= safe or trial.value <= point.value - step * decrement**2 / 4
            ):
                return trial
            if step <= safe:
                return None
            step = max(step / 2, safe)


class _Pairs(NamedTuple):
    """Positions in the flat matrix of every pair of one end of an entry with one end of another."""

    row_row: IntArray
    row_col: IntArray
    col_row: IntArray
    col_col: IntArray

    def products(self, inverse: FloatArray) -> FloatArray:
        """W_rr' W_cc' + W_rc' W_cr' for all pairs of entries."""
        straight: FloatArray = inverse.take(self.row_row) * inverse.take(self.col_col)
        straight += inverse.take(self.row_col) * inverse.take(self.col_row)
        return straight


def _solve(hessian: FloatArray, rhs: FloatArray) -> FloatArray:
    """Solve after scaling to unit diagonal, with the least ridge that is not singular."""
    root = np.sqrt(hessian.diagonal())
    scaled = hessian / root[:, None] / root
    ridge = 1e-15
    while True:
        try:
            np.linalg.cholesky(scaled)
            break
        except np.linalg.LinAlgError:
            if ridge > 1:
                break
            ridge *= 10
            scaled = scaled + ridge * np.eye(len(scaled))
    solution: FloatArray = np.linalg.solve(scaled, rhs / root) / root
    return solution

"""The decomposition in numbers of 40 digits and any exponent: how far a B is from the exact one, in B's own metric."""

import mpmath
import numpy as np

from tests.support.logdet_problems import dense_basis

DIGITS = 40


def complement(subspace):
    """A basis of S⊥ whose members are exact where the subspace is one of entries: matrices of mpmath."""
    n = subspace.n
    if subspace.rescales:
        allowed = np.asarray(subspace.project_complement(np.ones((n, n)))) != 0
        pairs = [(i, j) for i in range(n) for j in range(i, n) if allowed[i, j]]
        members = []
        for i, j in pairs:
            member = np.zeros((n, n))
            member[i, j] = member[j, i] = 1.0
            members.append(member)
    else:
        free = dense_basis(subspace)
        symmetric = np.zeros((n * (n + 1) // 2, n * n))
        for row, (i, j) in enumerate(zip(*np.triu_indices(n), strict=True)):
            symmetric[row, i * n + j] = symmetric[row, j * n + i] = 1.0
        rest = symmetric - symmetric @ free.T @ free
        _, singular, right = np.linalg.svd(rest)
        members = [row.reshape(n, n) for row in right[: int((singular > 1e-9).sum())]]
    return [mpmath.matrix(member.tolist()) for member in members]


def distance(A, B, subspace, num_steps=5):
    """‖B*^-½ (B - B*) B*^-½‖: how far B is from the exact B*, relative in every direction; infinite if not found.

    The Newton decrement of -log det B + tr(AB) at B, as long as it is small, is that distance to first order; steps
    from B go on until it vanishes, and the distance is measured from where they end.
    """
    with mpmath.workdps(DIGITS):
        members = complement(subspace)
        exact, given = (mpmath.matrix(np.asarray(matrix, dtype=np.float64).tolist()) for matrix in (A, B))
        largest = max(exact[i, i] for i in range(exact.rows))
        unit = [mpmath.sqrt(exact[i, i] if subspace.rescales else largest) for i in range(exact.rows)]
        for i in range(exact.rows):
            for j in range(exact.rows):  # mpmath takes small pivots for zeros
                exact[i, j] /= unit[i] * unit[j]
                given[i, j] *= unit[i] * unit[j]
        point, step = given.copy(), None
        for _ in range(num_steps):
            weight = _inverse(point)
            gradient = [_inner(exact - weight, member) for member in members]
            around = [weight * member * weight for member in members]
            hessian = mpmath.matrix([[_inner(one, member) for member in members] for one in around])
            root = [mpmath.sqrt(hessian[k, k]) for k in range(len(members))]
            scaled = mpmath.matrix(
                [[hessian[k, m] / root[k] / root[m] for m in range(len(root))] for k in range(len(root))]
            )
            solved = mpmath.lu_solve(scaled, mpmath.matrix([-g / r for g, r in zip(gradient, root, strict=True)]))
            step = [solved[k] / root[k] for k in range(len(root))]
            decrement = mpmath.sqrt(abs(sum(-s * g for s, g in zip(step, gradient, strict=True))))
            if decrement > 0.5:
                return float("inf")
            for size, member in zip(step, members, strict=True):
                point += size * member
            if decrement < mpmath.mpf(10) ** (-DIGITS // 2):
                break
        weight, apart = _inverse(point), given - point
        return float(mpmath.sqrt(abs(_inner(weight * apart * weight, apart))))


def _inverse(matrix):
    """The inverse of a positive definite matrix of any grading; mpmath takes small pivots for zeros."""
    size = [mpmath.sqrt(abs(matrix[i, i])) for i in range(matrix.rows)]
    inverse = mpmath.inverse(_divided(matrix, size))
    return _divided(inverse, size)


def _divided(matrix, size):
    return mpmath.matrix([[matrix[i, j] / size[i] / size[j] for j in range(matrix.cols)] for i in range(matrix.rows)])


def _inner(left, right):
    return sum(left[i, j] * right[j, i] for i in range(left.rows) for j in range(left.cols))

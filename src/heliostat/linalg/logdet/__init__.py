"""The log-det inverse decomposition A = B⁻¹ + C, B ∈ S⊥, C ∈ S: exact, certified, differentiable.

front       inverse_decomposition: checks, method choice, certificate
subspaces   S and S⊥: patterns, spans, exchangeable blocks, Kronecker sums, information sets
methods     closed forms, Schur reduction, dual and primal Newton, Newton-CG
sparse      banded and sparse A of millions of rows
implicit    derivatives with respect to A
"""

from heliostat.linalg.logdet.existence import DegenerateSubspaceError
from heliostat.linalg.logdet.front import inverse_decomposition
from heliostat.linalg.logdet.kronecker_sum import KroneckerSumEigenvalues, kronecker_sum_from_marginals
from heliostat.linalg.logdet.result import Certificate, ConvergenceError, InverseDecomposition
from heliostat.linalg.logdet.sparse import BandedMatrix, Partial
from heliostat.linalg.logdet.subspaces import (
    BlockExchangeable,
    ComplementOf,
    KroneckerSum,
    LowRank,
    SpanOf,
    SparsityPattern,
    Subspace,
    delayed_information,
    full_information,
    linear_information,
    markov_information,
)

__all__ = [
    "BandedMatrix",
    "BlockExchangeable",
    "Certificate",
    "ComplementOf",
    "ConvergenceError",
    "DegenerateSubspaceError",
    "InverseDecomposition",
    "KroneckerSum",
    "KroneckerSumEigenvalues",
    "LowRank",
    "Partial",
    "SpanOf",
    "SparsityPattern",
    "Subspace",
    "delayed_information",
    "full_information",
    "inverse_decomposition",
    "kronecker_sum_from_marginals",
    "linear_information",
    "markov_information",
]

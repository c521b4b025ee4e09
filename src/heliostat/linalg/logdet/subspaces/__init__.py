"""Subspaces S of the symmetric matrices, the space of C; ``base`` defines their interface."""

from heliostat.linalg.logdet.subspaces.base import ComplementOf, Subspace
from heliostat.linalg.logdet.subspaces.exchangeable import BlockExchangeable
from heliostat.linalg.logdet.subspaces.information import (
    delayed_information,
    full_information,
    linear_information,
    markov_information,
)
from heliostat.linalg.logdet.subspaces.kronecker import KroneckerSum
from heliostat.linalg.logdet.subspaces.pattern import SparsityPattern
from heliostat.linalg.logdet.subspaces.span import LowRank, SpanOf

__all__ = [
    "BlockExchangeable",
    "ComplementOf",
    "KroneckerSum",
    "LowRank",
    "SpanOf",
    "SparsityPattern",
    "Subspace",
    "delayed_information",
    "full_information",
    "linear_information",
    "markov_information",
]

r"""The diversity of the answers to one question, from a group of samples.

    collision = sum_v n_v (n_v - 1) / (G (G - 1))        unbiased for sum_v p_v^2, the chance that two samples agree
    effective number of answers = 1 / collision           3 answers of equal probability: 3

Left out: extracting answers (the caller does).

References: Simpson 1949, Nature 163:688 (the estimator); Hill 1973, Ecology 54:427 (the effective number).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def collision(answers: Sequence[Hashable]) -> float | None:
    """Estimate the chance that two samples of the group agree; ``None`` for fewer than two samples.

    **Limits** All equal: 1. All different: 0. Its mean over all groups of ``G`` independent samples is
    ``sum_v p_v^2`` exactly.
    """
    size = len(answers)
    if size < 2:
        return None
    return sum(count * (count - 1) for count in Counter(answers).values()) / (size * (size - 1))


def top_share(answers: Sequence[Hashable]) -> float | None:
    """Compute the share of the most frequent answer; ``None`` for an empty group."""
    return max(Counter(answers).values()) / len(answers) if answers else None

"""MaxRL: the likelihood of success instead of its probability, by a division of advantages by the mean reward.

    d/dp log p = 1 + (1 - p) + (1 - p)^2 + ...        REINFORCE keeps the first term, a group of n the first n - 1

Left out: weights for an order below that of the group, and the estimator without a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heliostat.objectives.baselines import Baseline
from heliostat.objectives.clipped import ClippedRatio
from heliostat.objectives.lengths import LengthNormalization


@dataclass(frozen=True, kw_only=True)
class MaxRl(ClippedRatio):
    """MaxRL: ``A_i = (r_i - mean r) / mean r`` in GRPO's clipped surrogate; 0 in a group without reward.

    With rewards of 0 and 1 and a share p of successes, a success has the advantage ``1/p - 1`` and a failure -1: the
    group's gradient at the anchor is the mean score of its successes minus the mean score of all.

    **Limits**: ``logp_new = logp_old``: ``reinforce`` with the baseline ``mean-normalized``. Groups of two: twice
    ``reinforce``. In expectation over 0/1 rewards at the anchor: the gradient of ``sum_k -(1-p)^k / k`` for k up to
    n - 1, the likelihood's expansion; n -> infinity: that of ``log p``. The paper's order is n: its control variate
    acts in groups without success too, where this is 0, as in its code. Negative rewards are refused.
    References: Tajwar et al. 2026, arXiv 2602.02710, and github.com/tajwarfahim/maxrl (the estimator ``maxrl`` of its
    verl, without its 1e-6).
    """

    name: ClassVar[str] = "maxrl"
    length_normalization: LengthNormalization = "token"
    baseline: Baseline = "mean-normalized"

r"""Metrics of a fixed panel: calibration of likelihoods, and the dependence of a completion on its prompt.

    calibration      mean_t H_t - mean_t (-log p(y_t))         0 for a language model at a stationary logit scale
    information      mean_i [log p(y_i|x_i) - log (1/M) sum_j p(y_i|x_j)]        a lower bound of I(x; y), at most log M

A collapse to one template keeps token entropy high and brings ``information`` to 0, so ``information`` reveals it.

Left out: sampling and scoring the panel (``train.guard.panel``).

References: Oord et al. 2018, arXiv 1807.03748 (the bound); RAGEN-2, arXiv 2604.06268 (template collapse).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def calibration_gap(entropy: Float[np.ndarray, " token"], logp: Float[np.ndarray, " token"]) -> float:
    """Compute the mean entropy minus the mean surprisal, in nats per token.

    **Limits** Tokens drawn from the distributions themselves: 0 in expectation. A one-hot policy that is right: 0.
    """
    return float(entropy.mean(dtype=np.float64) + logp.mean(dtype=np.float64))


def prompt_information(logp: Float[np.ndarray, "answer prompt"]) -> float:
    """Estimate the information from ``logp[i, j] = log p(y_i | x_j)``, in nats.

    **Limits** Columns equal (the prompt is ignored): 0. Each answer impossible under every other prompt: ``log M``.
    """
    highest = logp.max(axis=1, keepdims=True)
    mean = np.log(np.exp(logp - highest).mean(axis=1)) + highest[:, 0]
    return float((np.diagonal(logp) - mean).mean())

"""Mixed fractional Brownian motion, who sees what of it, and what the best linear strategy is worth.

    X_i = ΔW_i + α ΔB^H_i  is traded,   Y_i = ΔW_i  may be observed,   N steps of length Δ = T/N
    Cov(ΔB^H_i, ΔB^H_j) = ½ Δ^{2H} (|k+1|^{2H} + |k-1|^{2H} - 2|k|^{2H}),  k = i - j

The Δ^{2H} is part of the process: without it the fractional part would grow as the grid is refined. Left out: drift,
costs, and any utility but -exp(-wealth).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.linalg import Subspace, delayed_information, full_information, inverse_decomposition, linear_information

FloatArray = NDArray[np.float64]


def fractional_noise(num_steps: int, hurst: float, step: float) -> FloatArray:
    """Covariance of the increments of fractional Brownian motion on a grid."""
    lag = np.arange(num_steps)
    power = 2 * hurst
    row = (np.abs(lag + 1.0) ** power + np.abs(lag - 1.0) ** power - 2.0 * np.abs(lag) ** power) / 2
    return step**power * row[np.abs(np.subtract.outer(lag, lag))]


def market_covariance(num_steps: int, hurst: float, alpha: float, horizon: float = 1.0) -> FloatArray:
    """Covariance of (X_1..X_N, Y_1..Y_N)."""
    step = horizon / num_steps
    own = step * np.eye(num_steps)
    return np.block([[own + alpha**2 * fractional_noise(num_steps, hurst, step), own], [own, own]])


@dataclass(frozen=True)
class Information:
    """A name, the variables it concerns (N for the price alone, 2N with the Brownian part), and its subspace."""

    name: str
    num_variables: int
    subspace: Subspace


def information_sets(num_steps: int, delay: int) -> list[Information]:
    """Price alone, price with delay, levels of both (Markov), and the whole past of both (full)."""
    both = 2 * num_steps
    unit = np.eye(both)
    past = {i: [*range(i), *range(num_steps, num_steps + i)] for i in range(1, num_steps)}
    levels = {i: [unit[:i].sum(0), unit[num_steps : num_steps + i].sum(0)] for i in past}
    return [
        Information("full", both, linear_information(both, {i: list(unit[seen]) for i, seen in past.items()})),
        Information("price", num_steps, full_information(num_steps)),
        Information("delayed price", num_steps, delayed_information(num_steps, delay)),
        Information("Markov", both, linear_information(both, levels)),
    ]


@dataclass(frozen=True)
class Strategy:
    """γ = U x trades variable i with γ_i = Σ_j U_ij x_j, j in the past of i only."""

    holdings: FloatArray
    certainty_equivalent: float
    residual: float
    method: str


def best_strategy(covariance: FloatArray, information: Information, num_steps: int) -> Strategy:
    """Λ = Σ⁻¹ = B⁻¹ + C,  U = -C on the past,  CE = ½ (log det Σ - log det B)."""
    known = covariance[: information.num_variables, : information.num_variables]
    precision = np.linalg.inv(known)
    result = inverse_decomposition((precision + precision.T) / 2, information.subspace)
    time = np.arange(information.num_variables) % num_steps
    allowed = (time[None, :] < time[:, None]) & (np.arange(information.num_variables) < num_steps)[:, None]
    value = (np.linalg.slogdet(known)[1] - np.linalg.slogdet(result.B)[1]) / 2
    return Strategy(np.where(allowed, -result.C, 0.0), value, result.certificate.residual, result.certificate.method)


def certainty_equivalent(covariance: FloatArray, holdings: FloatArray) -> float:
    """-log E exp(-Σ γ_i x_i) of any linear strategy, in closed form; -inf where the expectation is infinite."""
    inverse = np.linalg.inv(covariance) + holdings + holdings.T
    sign, log_det = np.linalg.slogdet(inverse)
    if sign <= 0 or np.linalg.eigvalsh(inverse)[0] <= 0:
        return -np.inf
    return float((np.linalg.slogdet(covariance)[1] + log_det) / 2)

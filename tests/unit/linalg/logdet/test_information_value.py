"""The trading meaning of C and B, on a small fractional market written out here."""

import numpy as np
import pytest

from heliostat.linalg import delayed_information, full_information, inverse_decomposition, markov_information

N, HURST = 10, 0.7


def increments():
    """Covariance of fractional Brownian increments on a unit grid, from Cov(B_s, B_t) = ½(s^2H + t^2H - |s-t|^2H)."""
    time = np.arange(N + 1.0)
    power = 2 * HURST
    whole = (time[:, None] ** power + time**power - np.abs(time[:, None] - time) ** power) / 2
    return np.diff(np.diff(whole, axis=0), axis=1)


def value(holdings):
    """-log E exp(-Σ γ_i X_i), γ = UX."""
    inverse = np.linalg.inv(increments()) + holdings + holdings.T
    return (np.linalg.slogdet(increments())[1] + np.linalg.slogdet(inverse)[1]) / 2


@pytest.mark.parametrize(
    ("space", "expected"),
    [  # certainty equivalents of an earlier, independent implementation
        (full_information(N), 0.39165),
        (delayed_information(N, 1), 0.12262),
        (delayed_information(N, 3), 0.04214),
        (markov_information(N), 0.24860),
    ],
)
def test_certainty_equivalents(space, expected):
    precision = np.linalg.inv(increments())
    result = inverse_decomposition((precision + precision.T) / 2, space)
    holdings = -np.tril(result.C, -1)
    worth = (np.linalg.slogdet(increments())[1] - np.linalg.slogdet(result.B)[1]) / 2
    assert abs(worth - expected) < 6e-6
    assert abs(value(holdings) - worth) < 1e-12
    # KL(N(0,B) ‖ N(0,Σ)): the distance of the pricing measure
    divergence = (np.trace(precision @ result.B) - N) / 2 + worth
    assert abs(divergence - worth) < 1e-12
    rng = np.random.default_rng(0)
    for _ in range(20):
        move = rng.normal(size=(N, N))
        assert value(holdings + 0.01 * np.tril(np.asarray(space.project(move + move.T)), -1)) < worth
    wealth_of = rng.multivariate_normal(np.zeros(N), increments(), 100_000)
    losses = np.exp(-((wealth_of @ holdings.T) * wealth_of).sum(1))
    assert abs(-np.log(losses.mean()) - worth) < 5 * losses.std() / np.sqrt(len(losses)) / losses.mean()
    # under the pricing measure N(0, B) no allowed holding has an expected gain
    assert np.abs(np.asarray(space.project(result.B))).max() < 1e-12

"""Any scale and any grading of A: the answer is right, compared in numbers of 40 digits, or refused in a sentence."""

import numpy as np
import pytest
import torch

from heliostat.linalg import (
    BandedMatrix,
    BlockExchangeable,
    ConvergenceError,
    KroneckerSum,
    Partial,
    SparsityPattern,
    inverse_decomposition,
    markov_information,
)
from tests.support.logdet_exactly import distance
from tests.support.logdet_problems import covariance, cycle, traceless_span

PATTERNS = {
    "diagonal": SparsityPattern.diagonal(4),
    "band": SparsityPattern.banded(4, 1),
    "cycle": cycle(4),
}
SHARED_UNIT = {
    "markov": markov_information(4),
    "span": traceless_span(4, 3),
    "exchangeable": BlockExchangeable([2, 2]),
    "kronecker": KroneckerSum(2, 2),
}
SUBSPACES = PATTERNS | SHARED_UNIT


def graded(powers, seed=0, condition=1e2):
    """A covariance whose variables have sizes 10^power."""
    sizes = 10.0 ** (np.asarray(powers, dtype=float) / 2)
    half = covariance(4, seed, condition) * sizes[:, None] * sizes[None, :]
    return np.triu(half) + np.triu(half, 1).T


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SUBSPACES)
@pytest.mark.parametrize("power", [-300, -160, 0, 160, 300])
def test_right_at_every_scale(name, power):
    A = graded([power] * 4, seed=power % 7)
    found = inverse_decomposition(A, SUBSPACES[name])
    assert distance(A, found.B, SUBSPACES[name]) < 1e-11
    assert np.isfinite(found.C).all()
    plain = inverse_decomposition(np.ldexp(A, -2 * (power * 332 // 200)), SUBSPACES[name])
    assert found.kl == plain.kl
    assert found.certificate == plain.certificate


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("powers", [(300, -300, 0, 100), (0, 250, -250, 290), (-300, -299, 300, 299), (0, 20, 40, 60)])
def test_right_for_every_grading_of_a_pattern(name, powers):
    A = graded(powers, condition=1e4)
    found = inverse_decomposition(A, PATTERNS[name])
    assert distance(A, found.B, PATTERNS[name]) < 1e-10
    as_torch = inverse_decomposition(torch.from_numpy(A), PATTERNS[name])
    assert np.array_equal(as_torch.B.numpy(), found.B)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_UNIT)
@pytest.mark.parametrize("spread", [2, 6, 10, 14, 40, 300])
def test_right_or_refused_where_all_variables_share_a_unit(name, spread):
    A = graded(np.linspace(-spread / 2, spread / 2, 4))
    try:
        found = inverse_decomposition(A, SHARED_UNIT[name])
    except (ValueError, ConvergenceError):
        found = None
    assert found is not None or spread > 6
    assert found is None or distance(A, found.B, SHARED_UNIT[name]) < 1e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("power", [-37, -20, 20, 37])
def test_right_in_float32(power):
    A = graded([power] * 4).astype(np.float32)
    found = inverse_decomposition(A, PATTERNS["cycle"])
    assert found.B.dtype == np.float32
    assert distance(A, found.B, PATTERNS["cycle"]) < 1e-4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("subspace", SUBSPACES.values(), ids=SUBSPACES)
@pytest.mark.parametrize(
    ("A", "sentence"),
    [
        (
            graded([308.2] * 4, condition=1.5),
            "B would have a diagonal entry of about 1e-308, which float64 cannot hold",
        ),
        (graded([-310.0] * 4), "B would have a diagonal entry of about 1e[+]31., which float64 cannot hold"),
        (graded([-39.5] * 4).astype(np.float32), r"about 1e[+]\d\d, which float32 cannot hold .* or as float64"),
        (np.diag([1.0, 1e300, 1e-300, 1.0]) + 1e299 * (1 - np.eye(4)), "A is not positive definite"),
        (np.full((4, 4), 1e-310) - 2e-310 * np.eye(4), "A is not positive definite"),
    ],
)
def test_what_numbers_cannot_hold_is_refused(A, sentence, subspace):
    with pytest.raises(ValueError, match=sentence):
        inverse_decomposition(A, subspace)


def test_an_asymmetry_of_small_variables_is_seen():
    A = graded([0, 0, -200, -200])
    A[2, 3] *= -1
    with pytest.raises(ValueError, match="not symmetric"):
        inverse_decomposition(A, PATTERNS["cycle"])


@pytest.mark.parametrize("powers", [(300, -300, 0, 100), (-300,) * 4, (300,) * 4])
def test_sparse_and_banded_are_the_dense_ones(powers):
    sparse = pytest.importorskip("scipy.sparse")
    A, band = graded(powers), PATTERNS["band"]
    dense = inverse_decomposition(A, band)
    kept = np.triu(np.tril(A, 1), -1)
    for given in (Partial(BandedMatrix.from_dense(A, 1)), Partial(sparse.csc_array(kept))):
        found = inverse_decomposition(given, band)
        np.testing.assert_allclose(
            found.B.to_sparse().toarray() if hasattr(found.B, "to_sparse") else found.B.toarray(),
            dense.B,
            rtol=1e-9,
            atol=0,
        )
    banded = np.triu(np.tril(graded(powers, condition=1.5), 1), -1)
    whole = inverse_decomposition(BandedMatrix.from_dense(banded, 1), band)
    sizes = 10.0 ** (np.asarray(powers) / 2)
    C = whole.C.to_dense() / sizes[:, None] / sizes[None, :]
    expected = inverse_decomposition(banded, band).C / sizes[:, None] / sizes[None, :]
    np.testing.assert_allclose(C, expected, atol=1e-13)
    cycled = inverse_decomposition(Partial(sparse.csc_array(A)), PATTERNS["cycle"])
    np.testing.assert_allclose(cycled.B.toarray(), inverse_decomposition(A, PATTERNS["cycle"]).B, rtol=1e-6, atol=0)


def test_sparse_ones_are_refused_alike():
    sparse = pytest.importorskip("scipy.sparse")
    for A in (BandedMatrix.from_dense(graded([-310] * 4), 1), sparse.csc_array(graded([-310] * 4))):
        with pytest.raises(ValueError, match="which float64 cannot hold"):
            inverse_decomposition(Partial(A), PATTERNS["band"])
    with pytest.raises(ValueError, match="A is not positive definite"):
        inverse_decomposition(sparse.csc_array(np.array([[1e-300, 1e300], [1e300, 1.0]])), SparsityPattern.full(2))


@pytest.mark.parametrize("powers", [(40, -40, 0, 10), (-100,) * 4, (100,) * 4])
def test_derivatives_are_those_of_the_unit_scale(powers):
    def gradient(A, weights):
        A = torch.from_numpy(A).requires_grad_()
        found = inverse_decomposition(A, PATTERNS["cycle"])
        (found.B * weights + found.C * weights.reciprocal() + found.kl).sum().backward()
        return A.grad.numpy()

    shifts = np.asarray(powers) * 332 // 200
    plain = covariance(4)
    units = np.ldexp(1.0, shifts[:, None] + shifts[None, :])
    scaled = gradient(plain * units, torch.from_numpy(units)) * units
    np.testing.assert_array_equal(scaled, gradient(plain, torch.ones(4, 4, dtype=torch.float64)))


def test_a_gradient_beyond_numbers_is_refused():
    A = torch.from_numpy(graded([-200] * 4)).requires_grad_()
    found = inverse_decomposition(A, PATTERNS["cycle"])
    with pytest.raises(ValueError, match=r"gradient .* too large"):
        found.B.sum().backward()


def test_a_start_of_any_scale_is_taken():
    A = graded([-300] * 4)
    start = inverse_decomposition(A, PATTERNS["cycle"]).B
    assert inverse_decomposition(A, PATTERNS["cycle"], start=start).certificate.iterations <= 2


def test_what_a_mask_hides_is_not_data():
    masked = np.ma.masked_array(np.eye(4) * 2, mask=np.eye(4))
    with pytest.raises(ValueError, match="4 entries of A are masked"):
        inverse_decomposition(masked, PATTERNS["diagonal"])
    with pytest.raises(ValueError, match="4 entries of A are masked"):
        BandedMatrix(masked)
    with pytest.raises(ValueError, match="4 entries of A are masked"):
        BandedMatrix.from_dense(masked, 1)
    unmasked = np.ma.masked_array(np.eye(4) * 2, mask=np.zeros((4, 4)))
    assert inverse_decomposition(unmasked, PATTERNS["diagonal"]).B[0, 0] == pytest.approx(0.5)
    shown = torch.masked.masked_tensor(torch.eye(4) * 2, ~torch.eye(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="4 entries of A are masked"):
        inverse_decomposition(shown, PATTERNS["diagonal"])

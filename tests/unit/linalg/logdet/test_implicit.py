"""Derivatives of B, C and the divergence, against finite differences."""

import pytest
import torch

from heliostat.linalg import inverse_decomposition
from heliostat.linalg.logdet import implicit
from tests.support.logdet_problems import SUBSPACES, covariance, random_pattern


def root(n, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, n, n, generator=generator, dtype=torch.float64, requires_grad=True)


def decompose(factor, subspace):
    A = factor @ factor.mT + torch.eye(factor.shape[-1], dtype=torch.float64)
    result = inverse_decomposition(A, subspace)
    return result.B, result.C, result.kl


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diagonal", "band", "cycle", "span", "linear_precision", "kronecker", "exchangeable"])
def test_gradcheck(name):
    subspace = SUBSPACES[name]()
    # fast mode: one random direction in and out, over all 144 entries
    assert torch.autograd.gradcheck(lambda factor: decompose(factor, subspace), root(12), atol=1e-5, fast_mode=True)


@pytest.mark.slow
def test_gradcheck_of_everything_over_a_batch():
    from heliostat.linalg import SparsityPattern

    pattern = SparsityPattern(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
    assert torch.autograd.gradcheck(lambda factor: decompose(factor, pattern), root(4, batch=(2,)), atol=1e-6)


@pytest.mark.parametrize("name", ["cycle", "span", "kronecker", "band"])
def test_both_sides_pull_back_the_same(name):
    subspace, generator = SUBSPACES[name](), torch.Generator().manual_seed(0)
    B = torch.tensor(inverse_decomposition(covariance(12), subspace).B)[None]
    bars = [torch.randn(1, 12, 12, generator=generator, dtype=torch.float64) for _ in range(2)]
    bars = [bar + bar.mT for bar in bars]
    dual, primal = implicit.through_dual(B, *bars, subspace), implicit.through_primal(B, *bars, subspace)
    torch.testing.assert_close(dual, primal, rtol=1e-8, atol=1e-7)


def test_iterative_backward_equals_the_factorised_one(monkeypatch):
    pattern, A = random_pattern(40), torch.tensor(covariance(40), requires_grad=True)
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def grad():
        result = inverse_decomposition(A, pattern)
        return torch.autograd.grad((weight * (result.B + result.C)).sum(), A)[0]

    factorised = grad()
    monkeypatch.setattr(implicit, "ASSEMBLED_HESSIAN", 10)
    torch.testing.assert_close(grad(), factorised, rtol=1e-8, atol=1e-7)


def test_gradient_of_the_divergence_is_half_b_minus_a_inverse():
    # by the envelope theorem B's own change does not matter at the minimum
    A = torch.tensor(covariance(12), requires_grad=True)
    result = inverse_decomposition(A, SUBSPACES["cycle"]())
    (grad,) = torch.autograd.grad(result.kl, A)
    expected = (result.B - torch.linalg.inv(A)).detach() / 2
    torch.testing.assert_close((grad + grad.mT) / 2, expected, rtol=1e-8, atol=1e-8)


def test_float32_gradients_come_back_in_float32():
    A = torch.tensor(covariance(12), dtype=torch.float32, requires_grad=True)
    result = inverse_decomposition(A, SUBSPACES["cycle"]())
    result.B.sum().backward()
    assert A.grad.dtype == torch.float32
    double = torch.tensor(covariance(12), requires_grad=True)
    inverse_decomposition(double, SUBSPACES["cycle"]()).B.sum().backward()
    torch.testing.assert_close(A.grad.double(), double.grad, rtol=1e-3, atol=1e-3 * float(double.grad.abs().max()))


def test_no_graph_without_need():
    A = torch.tensor(covariance(12), requires_grad=True)
    with torch.no_grad():
        assert not inverse_decomposition(A, SUBSPACES["cycle"]()).B.requires_grad

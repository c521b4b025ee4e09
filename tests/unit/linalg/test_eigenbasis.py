"""Eigenbases of matrices of any size of entries."""

import pytest
import torch

from heliostat.linalg.eigenbasis import eigenbasis, power_of_two


def symmetric(num=3, n=6):
    matrix = torch.randn(num, n, n, generator=torch.Generator().manual_seed(0))
    return matrix @ matrix.mT


def test_it_diagonalises_from_the_lower_triangle_alone():
    matrix = symmetric()
    values, vectors = eigenbasis(matrix.tril() + 9.0 * torch.ones(6, 6).triu(1))
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6).expand(3, 6, 6), rtol=1e-5, atol=1e-5)
    assert vectors.is_contiguous()


@pytest.mark.parametrize("exponent", [-110, -60, 40, 110])
def test_a_power_of_two_changes_no_vector(exponent):
    values, vectors = eigenbasis(symmetric())
    scaled, same = eigenbasis(torch.ldexp(symmetric(), torch.tensor(exponent)))
    assert torch.equal(vectors, same)
    torch.testing.assert_close(torch.ldexp(scaled, torch.tensor(-exponent)), values)


def test_zero_has_a_basis_and_every_unit_is_an_even_power_of_two():
    values, vectors = eigenbasis(torch.zeros(2, 3, 3))
    assert not values.any()
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(3).expand(2, 3, 3))
    sizes = torch.tensor([0.0, 1e-38, 1e-20, 0.3, 1.0, 5.0, 1e30])
    roots = power_of_two(sizes).sqrt().log2()
    assert torch.equal(roots, roots.round())
    assert bool(torch.isfinite(sizes / power_of_two(sizes)).all())

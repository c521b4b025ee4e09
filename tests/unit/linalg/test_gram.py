"""Gram matrices in blocks against one product."""

import pytest
import torch

from heliostat.linalg.gram import SMALLEST_BLOCK, add_lower_gram_, gram


@pytest.mark.parametrize("shape", [(5, 3), (5, 600), (700, 513), (2, 9, 130), (1, 300, 65), (0, 100)])
def test_it_is_the_product(shape):
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(rows), rows.mT @ rows)


def test_few_columns_are_one_product_bit_for_bit():
    rows = torch.randn(7, SMALLEST_BLOCK)
    assert torch.equal(gram(rows), rows.mT @ rows)


@pytest.mark.parametrize("shape", [(6, 300), (2, 6, 200)])
def test_a_running_mean_keeps_the_lower_triangle(shape):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2))
    total = first.mT @ first
    expected = 0.9 * total + 0.1 * second.mT @ second
    add_lower_gram_(total, second, 0.9, 0.1)
    torch.testing.assert_close(total.tril(), expected.tril())
    add_lower_gram_(total.fill_(float("nan")), second, 0.0, 1.0)  # earlier statistics do not matter without decay
    torch.testing.assert_close(total.tril(), (second.mT @ second).tril())

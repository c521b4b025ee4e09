"""Lambert's W of an exponential: against its equation, against scipy, and in its limits."""

import math

import numpy as np
import pytest
import torch

from heliostat.linalg.lambert import lambertw_exp, lambertw_neg_exp

EVERY_SIZE = torch.cat([-torch.logspace(308, -308, 300, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
EVERY_SIZE = torch.cat([EVERY_SIZE, torch.logspace(-308, 308, 300, dtype=torch.float64)])


def test_solves_its_equation_over_the_whole_float_range():
    w = lambertw_exp(EVERY_SIZE)
    # log w is u - w where w may have underflowed; the equation is then checked through its exponential.
    above = EVERY_SIZE > 1
    residual = (w + w.log() - EVERY_SIZE)[above] / EVERY_SIZE[above]
    assert residual.abs().max() < 4e-16
    below = ~above & (EVERY_SIZE > -700)
    ratio = w[below] * torch.exp(w[below] - EVERY_SIZE[below])
    assert (ratio - 1).abs().max() < 2e-13
    assert torch.isfinite(w).all()
    assert (w[1:] >= w[:-1]).all()


def test_agrees_with_scipy_where_the_exponential_is_representable():
    special = pytest.importorskip("scipy.special")
    u = torch.linspace(-700, 700, 4001, dtype=torch.float64)
    expected = special.lambertw(np.exp(u.numpy())).real
    np.testing.assert_allclose(lambertw_exp(u).numpy(), expected, rtol=3e-13)
    wright = special.wrightomega(EVERY_SIZE.numpy())
    np.testing.assert_allclose(lambertw_exp(EVERY_SIZE).numpy(), wright, rtol=3e-13)


@pytest.mark.parametrize(
    ("u", "w"), [(1.0, 1.0), (1 + math.e, math.e), (-math.inf, 0.0), (math.inf, math.inf), (-1e308, 0.0)]
)
def test_limits(u, w):
    assert float(lambertw_exp(torch.tensor(u, dtype=torch.float64))) == pytest.approx(w, rel=1e-15)


def test_tails_follow_their_asymptotes():
    assert float(lambertw_exp(torch.tensor(-600.0))) == pytest.approx(math.exp(-600), rel=1e-12)
    u = 1e12
    assert float(lambertw_exp(torch.tensor(u, dtype=torch.float64))) == pytest.approx(u - math.log(u), rel=1e-15)


def test_second_branch_solves_its_equation():
    v = torch.cat(
        [
            -1 - torch.logspace(-12, 2.8, 500, dtype=torch.float64),
            torch.tensor([-1.0, -1e308, -math.inf], dtype=torch.float64),
        ]
    )
    w = lambertw_neg_exp(v)
    assert ((w >= 0) & (w <= 1)).all()
    inner = v > -700
    # The equation is flat at w = 1, so its residual is the right measure there, not the error in w.
    assert (w.log() - w - v)[inner].abs().max() < 2e-13
    assert float(w[500]) == 1.0
    assert (w[501:] == 0).all()


def test_second_branch_agrees_with_scipy_away_from_the_branch_point():
    special = pytest.importorskip("scipy.special")
    v = torch.linspace(-600, -1.001, 2001, dtype=torch.float64)
    expected = -special.lambertw(-np.exp(v.numpy())).real
    np.testing.assert_allclose(lambertw_neg_exp(v).numpy(), expected, rtol=1e-12)


def test_shapes_pass_through_and_bad_input_is_refused():
    assert lambertw_exp(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert lambertw_exp(torch.zeros(0)).shape == (0,)
    assert lambertw_exp(torch.tensor(0.5, dtype=torch.float32)).dtype == torch.float64
    with pytest.raises(ValueError, match="NaN"):
        lambertw_exp(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="only for v <= -1"):
        lambertw_neg_exp(torch.tensor([-2.0, -0.5]))

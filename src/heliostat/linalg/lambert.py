"""Lambert's W of an exponential, without ever forming the exponential.

    lambertw_exp(u)      = W0(e^u)       w + log w = u,  w > 0
    lambertw_neg_exp(v)  = -W0(-e^v)     log w - w = v,  0 < w <= 1,  v <= -1

Both are solved by Newton in the variable in which the equation is closest to linear, elementwise, in float64.

Left out: the branch W-1, complex arguments, and gradients (the functions run without autograd; the derivatives are
``w / (1 + w)`` and ``w / (1 - w)``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NUM_NEWTON_STEPS = 5  # quadratic from the starts below: four reach float64 everywhere, one is to spare


@torch.no_grad()
def lambertw_exp(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Compute Lambert's W0 of ``e^u``.

    ``w + log w = u``

    Args:
        u: any real numbers, any shape, of either sign and any size; made float64.

    Returns:
        ``w`` of the same shape, float64. Where ``w`` is below the smallest float it is 0, and ``log w = u - w = u``.

    Raises:
        ValueError: ``u`` holds a NaN.

    **Limits**: ``u -> -inf`` gives ``e^u`` (0 at minus infinity); ``u = 1`` gives 1; ``u -> inf`` gives
    ``u - log u`` (infinity at infinity).

    References: Corless, Gonnet, Hare, Jeffrey and Knuth (1996), *On the Lambert W function*; the function of ``u``
    is Wright's omega function, Corless and Jeffrey (2002).
    """
    u = _real(u)
    # Below 1 the equation is solved for y = log w, so that tiny w keep their relative precision.
    low = u.clamp(max=1.0)
    y = low - low.exp() / (1 + low.exp())
    for _ in range(NUM_NEWTON_STEPS):
        w = y.exp()
        y = torch.where(torch.isneginf(low), low, y - ((y - low) + w) / (1 + w))
    # Above 1 it is solved for w; the quotient comes first because w * w may overflow.
    high = u.clamp(min=1.0, max=torch.finfo(torch.float64).max)
    w = (high - high.log()).clamp(min=1.0)
    for _ in range(NUM_NEWTON_STEPS):
        w = w * ((1 + high - w.log()) / (1 + w))
    return torch.where(u <= 1, y.exp(), torch.where(torch.isposinf(u), u, w))


@torch.no_grad()
def lambertw_neg_exp(v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Compute minus Lambert's W0 of ``-e^v``, the smaller solution of ``w e^-w = e^v``.

    ``log w - w = v, 0 < w <= 1``

    Args:
        v: numbers at most -1, any shape; made float64.

    Returns:
        ``w`` of the same shape, float64. Near ``v = -1`` the two real branches meet and ``w`` moves with the square
        root of ``-1 - v``, so rounding of ``v`` limits it to about 1e-8 there.

    Raises:
        ValueError: ``v`` holds a NaN or a number above -1, where no real solution exists.

    **Limits**: ``v = -1`` gives 1; ``v -> -inf`` gives ``e^v``.

    References: Corless, Gonnet, Hare, Jeffrey and Knuth (1996).
    """
    v = _real(v)
    if bool((v > -1).any()):
        raise ValueError(f"w exp(-w) = exp(v) has a real solution only for v <= -1, got v = {float(v.max())}")
    gap = -1 - v
    root = (2 * gap).sqrt()
    # Branch-point series where the branches meet, and y = v + e^v far from it. Newton in y = log w on the concave
    # y - e^y = v then climbs to the root from below.
    near = (1 - root + root**2 / 3 - root**3 / 36).clamp(min=1e-300).log()
    y = torch.where(gap < 1, near, v + v.exp()).clamp(max=0.0)
    for _ in range(NUM_NEWTON_STEPS):
        slope = -torch.expm1(y)
        step = (y - y.exp() - v) / slope
        y = torch.where((slope > 0) & torch.isfinite(step), (y - step).clamp(max=0.0), y)
    return y.exp()


def _real(x: Tensor) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float64)
    if bool(x.isnan().any()):
        raise ValueError("Lambert's W was asked for a NaN")
    return x

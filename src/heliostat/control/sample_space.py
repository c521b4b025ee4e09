"""The natural gradient solved among samples instead of among parameters: a B x B system for B samples.

    (damping I + S'S/B)^-1 S'A/B  =  S' (damping I + SS'/B)^-1 A / B

with a score per row of S and an advantage per entry of A: a policy gradient whose advantages are transformed by the
samples' Gram matrix. Exact, whatever the architecture; the far end of the rank-1 family, and its oracle.

Left out: anything iterative (block Kaczmarz, conjugate gradients), and an entropy bonus, which is no sum over scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heliostat.optim.base.optimizer import BaseOptimizer
from heliostat.optim.base.settings import check_settings
from heliostat.optim.base.update_parts import NotFinite, bounded_divergence, momentum_buffer


def gram(scores: Mapping[Tensor, Float[Tensor, "row ..."]]) -> Float[Tensor, "row row"]:
    """Compute ``SS'``: the inner products of all pairs of scores, summed over parameters."""
    parts = [rows.flatten(1) for rows in scores.values()]
    return sum((rows @ rows.T for rows in parts), torch.zeros((), dtype=parts[0].dtype, device=parts[0].device))


def transformed_advantages(
    inner_products: Float[Tensor, "row row"], advantages: Float[Tensor, " row"], damping: float
) -> Float[Tensor, " row"]:
    """Compute ``(damping I + SS'/B)^-1 A``, in float64.

    Limits:
        damping -> infinity: ``A / damping``.
        orthogonal scores: ``A_i / (damping + |u_i|^2 / B)``.
    """
    size = len(advantages)
    system = inner_products.double() / size
    system.diagonal().add_(damping)
    return torch.cholesky_solve(advantages.double().unsqueeze(1), torch.linalg.cholesky(system)).squeeze(1)


class SampleSpaceNaturalGradient(BaseOptimizer):
    r"""``w <- w + lr * S'(damping I + SS'/B)^-1 A / B``: uphill, from scores and advantages instead of gradients.

    Args:
        params: parameters.
        lr: learning rate.
        damping: added to the empirical Fisher matrix ``S'S/B``.
        momentum: of the natural gradient: ``b <- momentum * b + d``.
        max_kl: shortens the step (before momentum) so that ``lr^2 g'd / 2`` is at most this.

    Raises:
        ValueError: a setting out of range.

    Limits:
        ``Rank1NaturalGradient`` with all B scores, on the gradient of ``-mean(A log pi)``.

    References:
        The identity is Woodbury's. Sun, arXiv 2605.18591 (2026), uses it for policy optimisation; reconstruction, from
        the abstract.
    """

    def __init__(
        self, params: Any, lr: float, damping: float = 0.1, momentum: float = 0.0, max_kl: float | None = None
    ) -> None:
        defaults = {"lr": lr, "damping": damping, "momentum": momentum}
        check_settings({**defaults, "max_kl": max_kl})
        self.max_kl = max_kl
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, *, scores: Mapping[Tensor, Float[Tensor, "row ..."]], advantages: Float[Tensor, " row"]
    ) -> None:
        """One step; gradients in place are not looked at."""
        (group,) = self.param_groups
        inner_products = gram(scores)
        if not bool(torch.isfinite(inner_products).all() and torch.isfinite(advantages).all()):
            self.skip("an advantage or a score")
            return
        weights = transformed_advantages(inner_products, advantages, group["damping"]) / len(advantages)
        try:
            scale = group["lr"] * self._shortening(inner_products, advantages, weights, group["lr"])
        except NotFinite:
            self.skip("the divergence of the step")
            return
        for parameter in group["params"]:
            direction = torch.tensordot(weights.to(parameter.dtype), scores[parameter], dims=1)
            if group["momentum"]:
                buffer = momentum_buffer(self.state[parameter], parameter).mul_(group["momentum"])
                parameter.add_(buffer.add_(direction, alpha=scale / group["lr"]), alpha=group["lr"])
            else:
                parameter.add_(direction, alpha=scale)
        self.num_steps += 1

    def _shortening(self, inner_products: Tensor, advantages: Tensor, weights: Tensor, lr: float) -> float:
        """Return the factor that bounds the divergence of ``lr d``, where ``g'd = A'SS'w / B`` for ``d = S'w``."""

        def decrement() -> float:
            return float(advantages.double() @ (inner_products.double() @ weights)) / len(advantages)

        return bounded_divergence(self.max_kl, lr, decrement)[1]

"""RING: a Kronecker-factored natural gradient whose damping grows with the gradient, ``damping + rho |g|^2``.

Left out: convolutions, factors split over ranks, layers whose sides are too long for a dense factor (they go to AdamW).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from heliostat.curvature.kronecker import FactorSums, KroneckerFactors
from heliostat.linalg.newton_inverse import direct_inverse, newton_inverse
from heliostat.optim.finite import ExtraPass, evaluated
from heliostat.optim.layers import LAYERS, LayerOptimizer
from heliostat.optim.reductions import dot
from heliostat.optim.replicas import Group, without_gradient_averaging

DampingForm = Literal["factored", "exact"]
NEWTON_UP_TO = 128
"""Rows up to which a CPU inverts by Newton's iteration: one step of it costs as much as three direct inverses there."""


class RING(LayerOptimizer):
    r"""``W <- W - lr * (A (x) B + gamma I)^-1 G`` per linear layer, ``gamma = damping + rho |g|^2``.

    ``A`` and ``B`` are running second moments of the layer's inputs (1 for the bias) and of its output gradients under
    labels sampled from the model. ``damping_form="factored"`` inverts ``A + pi sqrt(gamma) I`` and
    ``B + sqrt(gamma)/pi I``, with ``pi^2 = (tr A / size) / (tr B / size)``, by Newton's iteration from the last
    inverses, on a CPU above 128 rows by Cholesky; ``"exact"`` damps the product itself in eigenbases, as a reference.

    Args:
        model: its linear layers are covered; everything else goes to AdamW. Hooks stay on it (``recorder.close``).
        lr: learning rate.
        rho: growth of the damping with the squared norm of the whole gradient, in units of damping / |g|^2.
        damping: the floor of gamma.
        ema: weight of the old factors in the running averages.
        statistics_every: steps between statistics (``wants_statistics`` says when).
        inverse_every: steps between inverses, or eigenbases.
        damping_form: ``factored`` or ``exact``.
        empirical: use the loss's own output gradients, without an extra pass; the loss must be a mean over rows.
        momentum, weight_decay: as in SGD with decoupled decay; momentum is of the preconditioned gradient.
        max_kl: shortens the step (before momentum) so that ``lr^2 <d, G> / 2`` over all layers is at most this.
        max_size: layers with a longer side go to AdamW.
        adamw_lr, adamw_betas: AdamW's own settings for what is not covered.
        process_group: sums the factors over its ranks; ``None``: the default group, ``"alone"``: no others.
        skip_unscored: rows with a zero output gradient (padding) do not count.

    Raises:
        ValueError: a setting out of range.

    Limits:
        rho = 0: K-FAC with constant damping (Martens & Grosse, 2015), bit for bit.
        one row: ``A (x) B`` is the layer's Fisher matrix of that row, exactly.
        damping -> infinity, exact form: SGD with ``lr / damping``.
        "exact" is ``(A (x) B + gamma I)^-1 vec G``; "factored" is ``((A + pi s I) (x) (B + s/pi I))^-1 vec G``.

    References:
        Dash, Abdi, Pan, Kaski, Sun, arXiv 2601.18420 (2026): damping by the squared gradient norm, Newton's iteration.
        Reconstruction: the paper's body was not available. Its expectation under the model is zero as written, so the
        minibatch's own gradient is used; floor, pi-balance, schedules and restarts are ours.
    """

    extra_pass: ClassVar[ExtraPass] = "statistics"
    whole_state: ClassVar[frozenset[str]] = frozenset(
        {"momentum_buffer"}
        | {f"{side}_{what}" for side in ("input", "output") for what in ("factor", "inverse", "basis", "values")}
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        rho: float = 0.0,
        damping: float = 1e-3,
        ema: float = 0.95,
        statistics_every: int = 1,
        inverse_every: int = 10,
        damping_form: DampingForm = "factored",
        empirical: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        max_kl: float | None = None,
        max_size: int = 4096,
        adamw_lr: float = 1e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        process_group: Group = None,
        skip_unscored: bool = False,
    ) -> None:
        if rho < 0 or not damping > 0:
            raise ValueError(f"rho must not be negative and damping must be positive, got {rho} and {damping}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        if statistics_every < 1 or inverse_every < 1:
            raise ValueError("statistics_every and inverse_every must be at least 1")
        if damping_form not in ("factored", "exact"):
            raise ValueError(f"damping_form must be 'factored' or 'exact', got '{damping_form}'")
        self.rho, self.ema, self.damping_form, self.empirical = rho, ema, damping_form, empirical
        self.statistics_every, self.inverse_every = statistics_every, inverse_every
        self.gamma = damping
        self._sums = FactorSums(of_mean_loss=empirical)
        super().__init__(
            model,
            self._sums,
            lr=lr,
            max_size=max_size,
            momentum=momentum,
            weight_decay=weight_decay,
            max_kl=max_kl,
            adamw_lr=adamw_lr,
            adamw_betas=adamw_betas,
            process_group=process_group,
            skip_unscored=skip_unscored,
            damping=damping,
        )
        self._record_if_due()

    @property
    def wants_statistics(self) -> bool:
        """Whether the coming step should get fresh statistics."""
        return self.num_steps % self.statistics_every == 0 or any(
            "input_factor" not in self.state.get(layer.weight, {}) for layer in self.layers.values()
        )

    @contextmanager
    def statistics(self) -> Iterator[None]:
        """Forward and backward passes inside become statistics; gradients are as before when the context ends.

        The quantity to differentiate is the sum of log-probabilities of labels drawn from the model
        (``curvature.sampled_log_likelihood``).
        """
        with without_gradient_averaging(), self.recorder.recording(self.parameters()):
            yield

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        statistics_closure: Callable[[], Tensor] | None = None,
    ) -> Any:
        """One step on the gradients in place and the statistics given.

        Args:
            closure: optional; puts the gradients in place and returns the loss.
            statistics_closure: optional; runs the model and returns the sum of log-probabilities of sampled labels. It
                is called only when ``wants_statistics``.

        Raises:
            RuntimeError: there never were statistics of a layer that has a gradient.
        """
        loss = evaluated(closure)
        if statistics_closure is not None and self.wants_statistics:
            with torch.enable_grad(), self.statistics():
                statistics_closure().backward()  # type: ignore[no-untyped-call]
        factors = self._take_statistics()
        gradients = [p.grad for group in self.param_groups for p in self.with_gradient(group) if p.grad is not None]
        square = dot(gradients, gradients)
        traces = sum(float(f.inputs.trace() * f.outputs.trace()) for f in factors.values())
        if not (square < float("inf") and traces < float("inf")):
            self.skip("the gradient or a factor")
            return loss
        for name, fresh in factors.items():
            self._average(name, fresh)
        self.gamma = self._damping() + self.rho * square
        refresh = self.num_steps % self.inverse_every == 0
        self._move_all(lambda name, gradient: self._direction(name, gradient, refresh))
        self.num_steps += 1
        self._record_if_due()
        return loss

    def _record_if_due(self) -> None:
        """Empirical statistics come from the coming step's own passes."""
        self.recorder.is_recording = self.empirical and self.wants_statistics

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        super().load_state_dict(state_dict)
        self._record_if_due()

    def _take_statistics(self) -> dict[str, KroneckerFactors]:
        ranks = self.agreed_ranks()
        if ranks is not None:
            self._sums.over_ranks(ranks, self.layers)
        return self._sums.take()

    def _average(self, name: str, fresh: KroneckerFactors) -> None:
        state = self.state[self.layers[name].weight]
        for key, new in (("input_factor", fresh.inputs), ("output_factor", fresh.outputs)):
            state[key] = state[key].mul_(self.ema).add_(new, alpha=1 - self.ema) if key in state else new

    def _damping(self) -> float:
        return next((float(group["damping"]) for group in self.param_groups if group["rule"] == LAYERS), 0.0)

    def _direction(self, name: str, gradient: Tensor, refresh: bool) -> Tensor:
        state = self.state[self.layers[name].weight]
        if "input_factor" not in state:
            raise RuntimeError(
                f"RING has no statistics of layer '{name}': run 'with optimizer.statistics(): "
                "sampled_log_likelihood(model(x)).backward()' before step(), or pass statistics_closure"
            )
        return _BY_FORM[self.damping_form](state, gradient, self.gamma, refresh)


def _factored(state: dict[str, Tensor], gradient: Tensor, gamma: float, refresh: bool) -> Tensor:
    if refresh or "input_inverse" not in state:
        a, b = state["input_factor"], state["output_factor"]
        mean_a, mean_b = float(a.trace()) / len(a), float(b.trace()) / len(b)
        balance = (mean_a / mean_b) ** 0.5 if mean_a > 0 and mean_b > 0 else 1.0
        root = gamma**0.5
        for side, factor, shift in (("input", a, balance * root), ("output", b, root / balance)):
            damped = factor + shift * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            state[f"{side}_inverse"] = _inverse(damped, state.get(f"{side}_inverse"))
    return state["output_inverse"] @ gradient @ state["input_inverse"]


def _inverse(damped: Tensor, earlier: Tensor | None) -> Tensor:
    if damped.device.type == "cpu" and len(damped) > NEWTON_UP_TO:
        return direct_inverse(damped)
    return newton_inverse(damped, earlier).inverse


def _exact(state: dict[str, Tensor], gradient: Tensor, gamma: float, refresh: bool) -> Tensor:
    if refresh or "input_basis" not in state:
        for side in ("input", "output"):
            values, state[f"{side}_basis"] = torch.linalg.eigh(state[f"{side}_factor"])
            state[f"{side}_values"] = values.clamp(min=0)
    left, right = state["output_basis"], state["input_basis"]
    curvature = torch.outer(state["output_values"], state["input_values"])
    return left @ ((left.T @ gradient @ right) / (curvature + gamma)) @ right.T


_BY_FORM: dict[str, Callable[[dict[str, Tensor], Tensor, float, bool], Tensor]] = {
    "factored": _factored,
    "exact": _exact,
}

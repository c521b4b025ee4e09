"""RING: a Kronecker-factored natural gradient whose damping grows with the gradient, ``damping + rho |g|^2``.

Left out: convolutions, factors split over ranks, layers whose sides are too long for a dense factor (they go to AdamW).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from heliostat.curvature.kronecker import FactorSums, KroneckerFactors
from heliostat.curvature.recorder import num_columns
from heliostat.linalg.eigenbasis import eigenbasis
from heliostat.linalg.newton_inverse import direct_inverse, newton_inverse
from heliostat.optim.base.own_precision import ExtraPass, in_own_precision
from heliostat.optim.base.settings import settings_from
from heliostat.optim.base.update_parts import NotFinite
from heliostat.optim.distributed.replicas import ProcessGroup, without_gradient_averaging
from heliostat.optim.distributed.sharded_tensors import dot
from heliostat.optim.layers.layer_optimizer import LAYERS, LayerOptimizer, LayerSettings

NEWTON_TOLERANCE = 1e-3
"""Accepted residual per row of an inverse by Newton's iteration."""


@dataclass(frozen=True, kw_only=True)
class RingSettings(LayerSettings):
    """Hyperparameters of ``RING``.

    Attributes:
        rho: growth of the damping with the squared norm of the whole gradient, in units of damping / |g|^2.
        damping: the floor of the damping.
        ema: weight of the old factors in the running averages.
        statistics_every: steps between statistics, one more forward and backward pass each.
        inverse_every: steps between inverses, or eigenbases.
        damping_form: damp the factors (Newton inverses), or the product in eigenbases.
        empirical: use the loss's own output gradients, without an extra pass; the loss must be a mean over rows.
    """

    rho: float = 0.0
    ema: float = 0.95
    statistics_every: int = 1
    inverse_every: int = 10
    damping_form: Literal["factored", "exact"] = "factored"
    empirical: bool = False


class RING(LayerOptimizer):
    r"""``W <- W - lr * (A (x) B + gamma I)^-1 G`` per linear layer, ``gamma = damping + rho |g|^2``.

    ``A`` and ``B`` are running second moments of the layer's inputs (1 for the bias) and of its output gradients under
    labels sampled from the model. ``damping_form="factored"`` inverts ``A + pi sqrt(gamma) I`` and
    ``B + sqrt(gamma)/pi I``, with ``pi^2 = (tr A / size) / (tr B / size)``, by Cholesky on a CPU and elsewhere by
    Newton's iteration from the last inverses; ``"exact"`` damps the product itself in eigenbases, as a reference.

    Args:
        model: its linear layers are covered; everything else goes to AdamW. Hooks stay on it (``recorder.close``).
        lr: learning rate.
        settings: hyperparameters; the defaults of ``RingSettings`` where not given.
        process_group: sums the factors over its ranks; ``None``: the default group, ``"alone"``: no others.
        skip_zero_gradients: rows with a zero output gradient (padding) do not count.
        hyperparameters: fields of ``RingSettings`` by name, such as ``rho=0.1``; they replace those of ``settings``.

    Raises:
        TypeError: a keyword is no field of ``RingSettings``.
        ValueError: a setting out of range.

    Limits:
        rho = 0: K-FAC with constant damping (Martens & Grosse, 2015); on a CPU up to rounding, elsewhere up to the
            inverses' residual of 1e-3 per row.
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

    settings: RingSettings

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        settings: RingSettings | None = None,
        *,
        process_group: ProcessGroup = None,
        skip_zero_gradients: bool = False,
        **hyperparameters: Any,
    ) -> None:
        own = settings_from(RingSettings, settings, hyperparameters)
        self.gamma = own.damping
        self._sums = FactorSums(of_mean_loss=own.empirical)
        super().__init__(model, self._sums, lr, own, process_group, skip_zero_gradients)
        self._record_if_due()

    @property
    def empirical(self) -> bool:
        """Whether statistics come from the loss's own passes, so that none are to be supplied."""
        return self.settings.empirical

    @property
    def wants_statistics(self) -> bool:
        """Whether the next step should get fresh statistics."""
        return self.num_steps % self.settings.statistics_every == 0 or not all(
            map(self._is_known, self.layers.values())
        )

    def _is_known(self, layer: nn.Linear) -> bool:
        """Return whether there are statistics of a layer's matrix with its current columns; a frozen one needs none."""
        state, width = self.state.get(layer.weight, {}), num_columns(layer)
        return not width or (state.get("num_statistics", 0) > 0 and state["num_columns"] == width)

    @contextmanager
    def statistics(self) -> Iterator[None]:
        """Turn forward and backward passes inside into statistics; gradients are as before when the context ends.

        Differentiate the sum of log-probabilities of labels drawn from the model
        (``curvature.sampled_log_likelihood``).
        """
        with without_gradient_averaging(), self.recorder.recording(self.parameters()):
            yield

    @in_own_precision
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        statistics_closure: Callable[[], Tensor] | None = None,
    ) -> Any:
        """Take one step on the gradients in place and the statistics given.

        Args:
            closure: optional; puts the gradients in place and returns the loss.
            statistics_closure: optional; runs the model and returns the sum of log-probabilities of sampled labels. It
                is called only when ``wants_statistics``.

        Raises:
            RuntimeError: there never were statistics of a layer that has a gradient, its own pass was not seen, or its
                parameters were replaced.
        """
        loss = self.run_closure(closure)
        self.refuse_replaced()
        if statistics_closure is not None and self.wants_statistics:
            with self.callers_mode(), self.statistics():
                statistics_closure().backward()  # type: ignore[no-untyped-call]
        factors = self._take_statistics()
        if self.would_move_nothing():
            self._begin_all()
            return loss
        if self.recorder.is_recording:
            self.refuse_unseen(factors)
        gradients = list(self.gradients().values())
        square = dot(gradients, gradients)
        traces = sum(float(f.inputs.trace() * f.outputs.trace()) for f in factors.values())
        if not (square < float("inf") and traces < float("inf")):
            self.skip("the gradient or a factor")
            return loss
        gamma = self._damping() + self.settings.rho * square
        if self.commit(lambda: self._update(factors, gamma)):
            self.gamma = gamma
            self._record_if_due()
        return loss

    def _update(self, factors: dict[str, KroneckerFactors], gamma: float) -> None:
        for name, fresh in factors.items():
            self._average(name, fresh)
        refresh = self.num_steps % self.settings.inverse_every == 0
        self._move_all(lambda name, gradient: self._direction(name, gradient, gamma, refresh))

    def _begin(self, state: dict[str, Any], matrix: Tensor) -> None:
        num_outputs, num_inputs = matrix.shape
        state["num_statistics"], state["num_inverses"] = 0, 0
        for side, size in (("input", num_inputs), ("output", num_outputs)):
            for what in ("factor", *_KEPT[self.settings.damping_form]):
                shape = (size,) if what == "values" else (size, size)
                state[f"{side}_{what}"] = matrix.new_zeros(shape)

    def _record_if_due(self) -> None:
        """Record the next step's own passes where they are to become empirical statistics."""
        self.recorder.is_recording = self.settings.empirical and self.wants_statistics

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients and statistics, before passes that may have to be recorded."""
        super().zero_grad(set_to_none)
        self._record_if_due()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        super().load_state_dict(state_dict)
        self._record_if_due()

    def _take_statistics(self) -> dict[str, KroneckerFactors]:
        ranks = self.checked_ranks()
        if ranks is not None:
            self._sums.over_ranks(ranks, self.layers)
        return self._sums.take()

    def _average(self, name: str, fresh: KroneckerFactors) -> None:
        state = self.state_of(self.layers[name], len(fresh.inputs), fresh.inputs)
        # The first factors replace the initial zeros: an average with them would be too small.
        weight = 1 - self.settings.ema if state["num_statistics"] else 1.0
        for key, new in (("input_factor", fresh.inputs), ("output_factor", fresh.outputs)):
            state[key].mul_(self.settings.ema if weight < 1 else 0.0).add_(new, alpha=weight)
        state["num_statistics"] += 1

    def _damping(self) -> float:
        return next((float(group["damping"]) for group in self.param_groups if group["rule"] == LAYERS), 0.0)

    def _direction(self, name: str, gradient: Tensor, gamma: float, refresh: bool) -> Tensor:
        state = self.state_of(self.layers[name], gradient.shape[1], gradient)
        if not state["num_statistics"]:
            if not bool(gradient.any()):  # a LoRA adapter whose other half is still zero: no row has a gradient
                return gradient
            raise RuntimeError(
                f"RING has no statistics of layer '{name}': run 'with optimizer.statistics(): "
                "sampled_log_likelihood(model(x)).backward()' before step(), or pass statistics_closure, with a model "
                "that was not compiled before the optimizer was made"
            )
        refresh = refresh or not state["num_inverses"]
        state["num_inverses"] += refresh
        return _BY_FORM[self.settings.damping_form](state, gradient, gamma, refresh)


def _factored(state: dict[str, Any], gradient: Tensor, gamma: float, refresh: bool) -> Tensor:
    """Return ``(B + s/pi I)^-1 G (A + pi s I)^-1`` with ``s = gamma^(1/2)``; ``refresh`` renews the inverses."""
    if refresh:
        a, b = state["input_factor"], state["output_factor"]
        # pi gives both factors damping in proportion to their mean eigenvalue (Martens & Grosse, 2015, section 6.3).
        mean_a, mean_b = float(a.trace()) / len(a), float(b.trace()) / len(b)
        balance = (mean_a / mean_b) ** 0.5 if mean_a > 0 and mean_b > 0 else 1.0
        root = gamma**0.5
        if not (isfinite(root / balance) and isfinite(balance * root)):
            raise NotFinite("the damping of a factor")
        for side, factor, shift in (("input", a, balance * root), ("output", b, root / balance)):
            damped = factor + shift * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            state[f"{side}_inverse"] = _inverse(damped, state[f"{side}_inverse"])
    move: Tensor = state["output_inverse"] @ gradient @ state["input_inverse"]
    return move


def _inverse(damped: Tensor, earlier: Tensor) -> Tensor:
    """Invert a damped factor; ``earlier`` is its last inverse, zeros before the first."""
    if damped.device.type == "cpu":  # where one Newton step costs as much as three direct inverses
        return direct_inverse(damped).contiguous()
    return newton_inverse(damped, earlier if bool(earlier.any()) else None, NEWTON_TOLERANCE).inverse


def _exact(state: dict[str, Any], gradient: Tensor, gamma: float, refresh: bool) -> Tensor:
    """Return ``(A (x) B + gamma I)^-1 vec G``, a division in the factors' eigenbases; ``refresh`` renews those."""
    if refresh:
        for side in ("input", "output"):
            values, state[f"{side}_basis"] = eigenbasis(state[f"{side}_factor"])
            state[f"{side}_values"] = values.clamp(min=0)
    left, right = state["output_basis"], state["input_basis"]
    curvature = torch.outer(state["output_values"], state["input_values"])
    move: Tensor = left @ ((left.T @ gradient @ right) / (curvature + gamma)) @ right.T
    return move


_KEPT = {"factored": ("inverse",), "exact": ("basis", "values")}
_BY_FORM: dict[str, Callable[[dict[str, Any], Tensor, float, bool], Tensor]] = {
    "factored": _factored,
    "exact": _exact,
}

"""Gradient regularisation in front of any optimizer: ``g + rho H g``, the gradient of ``loss + (rho/2) |g|^2``.

Left out: second passes that advance batch-norm statistics, loss scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from heliostat.optim.base.optimizer import BaseOptimizer
from heliostat.optim.base.own_precision import ExtraPass, forget_moments, in_own_precision
from heliostat.optim.base.settings import check_group, settings_from
from heliostat.optim.distributed.replicas import ProcessGroup, average, is_sharded, without_gradient_averaging
from heliostat.optim.distributed.sharded_tensors import all_finite, dot, full_tensor, upcast
from heliostat.optim.precision.master_copies import is_low_precision

Losses = Callable[[], Tensor | Iterable[Tensor]]


@dataclass(frozen=True, kw_only=True)
class RengSettings:
    """Hyperparameters of ``RENG``.

    Attributes:
        rho: weight of the penalty (rho/2) |g|^2, in units of 1/curvature.
        mode: how H g is computed; bfloat16 weights need double-backward.
        radius: distance of the finite difference's second point, in weight space.
    """

    rho: float = 0.01
    mode: Literal["finite-difference", "double-backward"] = "finite-difference"
    radius: float = 0.01


class RENG(BaseOptimizer):
    r"""Replaces the gradient by ``g + rho H g`` and lets ``base`` take the step.

    ``finite-difference``: ``H g ~ (|g| / radius) (g(w + radius g / |g|) - g(w))``, one more forward and backward.
    ``double-backward``: ``H g`` by differentiating ``g' v`` at ``v = g``, exact, for models whose kernels can be
    differentiated twice (attention falls back to its plain form meanwhile).

    The same minibatch and the same random numbers are used at both points.

    Args:
        base: any optimizer, over the same parameters; learning rates and groups are its own.
        rho: weight of the penalty ``(rho/2) |g|^2``, in units of 1/curvature.
        settings: further hyperparameters; the defaults of ``RengSettings`` where not given.
        process_group: averages ``H g`` over its ranks in ``double-backward``, where no DDP does. ``None``: the default
            group, ``"alone"``: no others.
        hyperparameters: fields of ``RengSettings`` by name, such as ``radius=0.1``; they replace those of ``settings``.

    Raises:
        TypeError: a keyword is no field of ``RengSettings``.
        ValueError: a setting out of range; ``double-backward`` over sharded weights, which it cannot differentiate;
            ``finite-difference`` over weights shorter than float32, between which there is no second point so near.

    Limits:
        rho = 0: ``base``, bit for bit, without a second pass. Learning rates 0 and a zero gradient: the same.
        radius -> 0: the finite difference tends to the double backward.
        a quadratic loss: both are ``(I + rho H) g`` exactly (up to rounding).
        g = 0: ``base`` with ``g = 0``.

    References:
        Dash, Abdi, Pan, Kaski, Sun, arXiv 2601.18420 (2026): the penalty by double backward. Reconstruction: the
        paper's body was not available, and it puts a natural gradient behind the penalty, which is ``base`` here.
        The finite difference is that of Karakida et al. (2023).
    """

    extra_pass: ClassVar[ExtraPass] = "reevaluation"

    settings: RengSettings

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float,
        settings: RengSettings | None = None,
        *,
        process_group: ProcessGroup = None,
        **hyperparameters: Any,
    ) -> None:
        self.settings = own = settings_from(RengSettings, settings, {**hyperparameters, "rho": rho})
        short = {p.dtype for group in base.param_groups for p in group["params"] if is_low_precision(p)}
        if short and own.rho and own.mode == "finite-difference":
            raise ValueError(
                f"mode 'finite-difference' cannot be used on {str(short.pop()).removeprefix('torch.')} weights: their "
                f"second point, {own.radius} away, would be rounded back to the first; set mode = 'double-backward', "
                "or train float32 weights"
            )
        self.base, self.process_group = base, process_group
        super().__init__([{"params": group["params"]} for group in base.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Use the base optimizer's own defaults, groups and state, the same objects."""
        self.defaults, self.param_groups, self.state = self.base.defaults, self.base.param_groups, self.base.state
        for group in self.param_groups:
            for name in self.group_numbers:
                group.setdefault(name, getattr(self, name))

    def _masters(self) -> dict[Tensor, Tensor]:
        return self.base._masters() if isinstance(self.base, BaseOptimizer) else {}

    def adopt(self) -> None:
        """Let the base adopt the weights that another writer has changed."""
        if isinstance(self.base, BaseOptimizer):
            self.base.adopt()

    def forget(self) -> None:
        """Drop the base's state; its master copies stay."""
        forget_moments(self.base)

    def _add_to(self, saved: dict[str, Any]) -> None:
        super()._add_to(saved)
        if isinstance(self.base, BaseOptimizer):
            self.base._add_to(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        super()._restore(saved)
        if isinstance(self.base, BaseOptimizer):
            self.base._restore(saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the optimizer, and give the base the loaded state and groups, which torch puts here."""
        super().__setstate__(state)
        self.base.state, self.base.param_groups = self.state, self.param_groups
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add further parameters to the base."""
        if self.param_groups is not getattr(self.base, "param_groups", None):  # the base optimizer has them already
            super().add_param_group(param_group)
            return
        check_group(param_group, type(self).__name__)
        self.base.add_param_group(param_group)

    @in_own_precision
    def step(  # type: ignore[override]
        self, closure: Losses | None = None, *, again: Losses | None = None
    ) -> Any:
        """Take one step of the base optimizer on the regularised gradient.

        Args:
            closure: returns the minibatch's loss, or one loss per micro-batch, with graph and without backward; called
                once at the weights and once near them.
            again: the same, where the gradients at the weights are already in place.

        Returns:
            The loss at the weights where ``closure`` was given.
        """
        total = None
        state = _random_state()
        if closure is not None:
            self.zero_grad()
            with self.callers_mode():
                total = _accumulate(closure)
            again = closure
        if again is None and self.settings.rho and not self.would_move_nothing():
            raise RuntimeError(
                "RENG needs the loss a second time: step(closure), where closure returns it and does not differentiate "
                "it, or step(again=closure) after backward"
            )
        pairs = list(self.gradients().items())
        gradients = [gradient for _, gradient in pairs]
        ranks = self.checked_ranks()
        if not all_finite(gradients):
            self.skip("the gradient")
            return total
        if self.settings.rho and again is not None:
            norm = _norm(gradients)
            if norm > 0 and not self._regularise(pairs, norm, again, state, ranks):
                for parameter, gradient in pairs:
                    parameter.grad = gradient
                self.skip("the gradient of the second pass")
                return total
        self.commit_step_of(self.base)
        return total

    def _regularise(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        norm: float,
        again: Losses,
        state: Any,
        ranks: dist.ProcessGroup | None,
    ) -> bool:
        """Put ``g + rho H g`` in place of the gradients, and return whether it is finite."""
        with torch.random.fork_rng(devices=_devices()), self.callers_mode():
            _set_random_state(state)
            if self.settings.mode == "finite-difference":
                curved = self._difference(pairs, norm, again)
            else:
                curved = _product(pairs, again)
                if ranks is not None:
                    average(curved, ranks)
        if not all_finite(curved):
            return False
        for (parameter, gradient), change in zip(pairs, curved, strict=True):
            parameter.grad = upcast(gradient).add(change, alpha=self.settings.rho).to(gradient.dtype)
        return True

    def _difference(self, pairs: list[tuple[Tensor, Tensor]], norm: float, again: Losses) -> list[Tensor]:
        """Return ``H g`` by a finite difference of gradients, and leave the weights as they were."""
        kept = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, gradient in pairs:
                parameter.add_(gradient, alpha=self.settings.radius / norm)
                parameter.grad = None
        try:
            _accumulate(again)
            here = [(torch.zeros_like(g) if p.grad is None else p.grad) for p, g in pairs]
        finally:
            with torch.no_grad():
                for (parameter, _), old in zip(pairs, kept, strict=True):
                    parameter.copy_(old)
        return [(new - old) * (norm / self.settings.radius) for new, (_, old) in zip(here, pairs, strict=True)]

    def __repr__(self) -> str:
        """Show the settings, and the base with its groups."""
        own = ", ".join(f"{name}: {value}" for name, value in asdict(self.settings).items())
        return f"RENG ({own}, base: {self.base!r})"


def _pieces(losses: Losses) -> Iterable[Tensor]:
    """Yield the losses of one evaluation, one by one."""
    with torch.enable_grad():
        found = losses()
        yield from [found] if isinstance(found, Tensor) else found


def _accumulate(losses: Losses) -> float:
    """Add the gradients of one evaluation to those in place, and return its total loss."""
    total = 0.0
    for loss in _pieces(losses):
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _product(pairs: list[tuple[Tensor, Tensor]], again: Losses) -> list[Tensor]:
    """Return ``H g`` by double backward, micro-batch by micro-batch."""
    parameters, along = [p for p, _ in pairs], [g.detach() for _, g in pairs]
    if is_sharded(parameters):
        raise ValueError("RENG's mode 'double-backward' cannot differentiate sharded weights: use 'finite-difference'")
    total = [torch.zeros_like(upcast(gradient)) for gradient in along]
    with sdpa_kernel(SDPBackend.MATH), without_gradient_averaging():
        for loss in _pieces(again):
            with torch.enable_grad():
                first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
                # The gradient of u'v by w, with v held constant, is H v.
                slope = sum((upcast(u) * v).sum() for u, v in zip(first, along, strict=True) if u is not None)
                if isinstance(slope, Tensor) and slope.requires_grad:
                    second = torch.autograd.grad(slope, parameters, allow_unused=True)
                    total = [t if h is None else t + h for t, h in zip(total, second, strict=True)]
    return total


def _norm(gradients: list[Tensor]) -> float:
    """Return ``|g|``, also where the squares of g are too small for its dtype."""
    square = dot(gradients, gradients)
    if square > 1e-30:
        return float(square**0.5)
    largest = max((float(full_tensor(gradient.abs().max())) for gradient in gradients if gradient.numel()), default=0.0)
    scaled = [gradient / largest for gradient in gradients] if largest else []
    return float(largest * dot(scaled, scaled) ** 0.5)


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in _devices()]


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    for device, own in zip(_devices(), state[1], strict=True):
        torch.cuda.set_rng_state(own, device)

"""Gradient regularisation in front of any optimizer: ``g + rho H g``, the gradient of ``loss + (rho/2) |g|^2``.

Left out: second passes that advance batch-norm statistics, loss scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from heliostat.optim.finite import ExtraPass, FiniteStep
from heliostat.optim.reductions import all_finite, dot
from heliostat.optim.replicas import Group, average, is_sharded, without_gradient_averaging

Mode = Literal["finite-difference", "double-backward"]
Losses = Callable[[], Tensor | Iterable[Tensor]]


class RENG(FiniteStep):
    r"""Replaces the gradient by ``g + rho H g`` and lets ``base`` take the step.

    ``finite-difference``: ``H g ~ (|g| / radius) (g(w + radius g / |g|) - g(w))``, one more forward and backward.
    ``double-backward``: ``H g`` by differentiating ``g' v`` at ``v = g``, exact, for models whose kernels can be
    differentiated twice (attention falls back to its plain form meanwhile).

    The same minibatch and the same random numbers are used at both points.

    Args:
        base: any optimizer, over the same parameters; learning rates and groups are its own.
        rho: weight of the penalty ``(rho/2) |g|^2``, in units of 1/curvature.
        mode: how ``H g`` is computed.
        radius: distance of the second point, in weight space.
        process_group: averages ``H g`` over its ranks in ``double-backward``, where no DDP does. ``None``: the default
            group, ``"alone"``: no others.

    Raises:
        ValueError: a setting out of range; ``double-backward`` over sharded weights, which it cannot differentiate.

    Limits:
        rho = 0: ``base``, bit for bit, without a second pass.
        radius -> 0: the finite difference tends to the double backward.
        a quadratic loss: both are ``(I + rho H) g`` exactly (up to rounding).
        g = 0: ``base`` with ``g = 0``.

    References:
        Dash, Abdi, Pan, Kaski, Sun, arXiv 2601.18420 (2026): the penalty by double backward. Reconstruction: the
        paper's body was not available, and it puts a natural gradient behind the penalty, which is ``base`` here.
        The finite difference is that of Karakida et al. (2023).
    """

    extra_pass: ClassVar[ExtraPass] = "reevaluation"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float,
        mode: Mode = "finite-difference",
        radius: float = 0.01,
        process_group: Group = None,
    ) -> None:
        if rho < 0:
            raise ValueError(f"rho must not be negative, got {rho}")
        if mode not in ("finite-difference", "double-backward"):
            raise ValueError(f"mode must be 'finite-difference' or 'double-backward', got '{mode}'")
        if not radius > 0:
            raise ValueError(f"radius must be positive, got {radius}")
        self.base, self.rho, self.mode, self.radius = base, rho, mode, radius
        self.process_group = process_group
        super().__init__([{"params": group["params"]} for group in base.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and state are the base optimizer's own objects."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def step(  # type: ignore[override]
        self, losses: Losses | None = None, *, again: Losses | None = None
    ) -> Any:
        """One step of the base optimizer on the regularised gradient.

        Args:
            losses: returns the minibatch's loss, or one loss per micro-batch, with graph and without backward; called
                once at the weights and once beside them.
            again: the same, where the gradients at the weights are already in place.

        Returns:
            The loss at the weights where ``losses`` was given.
        """
        total = None
        state = _random_state()
        if losses is not None:
            self.zero_grad()
            total = _accumulate(losses)
            again = losses
        if again is None and self.rho:
            raise RuntimeError("RENG needs the loss a second time: step(losses), or step(again=losses) after backward")
        pairs = [(p, p.grad) for group in self.param_groups for p in self.with_gradient(group) if p.grad is not None]
        gradients = [gradient for _, gradient in pairs]
        ranks = self.agreed_ranks()
        if not all_finite(gradients):
            self.skip("the gradient")
            return total
        if self.rho and again is not None:
            norm = dot(gradients, gradients) ** 0.5
            if norm > 0 and not self._regularise(pairs, norm, again, state, ranks):
                for parameter, gradient in pairs:
                    parameter.grad = gradient
                self.skip("the gradient of the second pass")
                return total
        self.base.step()
        self.num_steps += 1
        return total

    def _regularise(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        norm: float,
        again: Losses,
        state: Any,
        ranks: dist.ProcessGroup | None,
    ) -> bool:
        """Put ``g + rho H g`` in place; returns whether it is finite."""
        with torch.random.fork_rng(devices=_devices()):
            _set_random_state(state)
            if self.mode == "finite-difference":
                curved = self._difference(pairs, norm, again)
            else:
                curved = _product(pairs, again)
                if ranks is not None:
                    average(curved, ranks)
        if not all_finite(curved):
            return False
        for (parameter, gradient), change in zip(pairs, curved, strict=True):
            parameter.grad = gradient.add(change, alpha=self.rho)
        return True

    def _difference(self, pairs: list[tuple[Tensor, Tensor]], norm: float, again: Losses) -> list[Tensor]:
        kept = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, gradient in pairs:
                parameter.add_(gradient, alpha=self.radius / norm)
                parameter.grad = None
        try:
            _accumulate(again)
            here = [(torch.zeros_like(g) if p.grad is None else p.grad) for p, g in pairs]
        finally:
            with torch.no_grad():
                for (parameter, _), old in zip(pairs, kept, strict=True):
                    parameter.copy_(old)
        return [(new - old) * (norm / self.radius) for new, (_, old) in zip(here, pairs, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and our counters."""
        return {"base": self.base.state_dict(), "num_skipped": self.num_skipped, "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        self.base.load_state_dict(state_dict["base"])
        self.num_skipped, self.num_steps = state_dict["num_skipped"], state_dict["num_steps"]
        self._share()


def _pieces(losses: Losses) -> Iterable[Tensor]:
    with torch.enable_grad():
        found = losses()
        yield from [found] if isinstance(found, Tensor) else found


def _accumulate(losses: Losses) -> float:
    total = 0.0
    for loss in _pieces(losses):
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _product(pairs: list[tuple[Tensor, Tensor]], again: Losses) -> list[Tensor]:
    """``H g``, micro-batch by micro-batch."""
    parameters, along = [p for p, _ in pairs], [g.detach() for _, g in pairs]
    if is_sharded(parameters):
        raise ValueError("RENG's mode 'double-backward' cannot differentiate sharded weights: use 'finite-difference'")
    total = [torch.zeros_like(gradient) for gradient in along]
    with sdpa_kernel(SDPBackend.MATH), without_gradient_averaging():
        for loss in _pieces(again):
            with torch.enable_grad():
                first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
                slope = sum((u * v).sum() for u, v in zip(first, along, strict=True) if u is not None)
                if isinstance(slope, Tensor) and slope.requires_grad:
                    second = torch.autograd.grad(slope, parameters, allow_unused=True)
                    total = [t if h is None else t + h for t, h in zip(total, second, strict=True)]
    return total


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in _devices()]


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    for device, own in zip(_devices(), state[1], strict=True):
        torch.cuda.set_rng_state(own, device)

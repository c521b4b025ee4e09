"""Steps in the weights' own precision: no autocast, no loss scale, and master copies of low-precision weights.

Left out: the arithmetic of master copies (``precision.master_copies``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from heliostat.optim.base.saving import SavedOptimizer
from heliostat.optim.precision.master_copies import MASTER, adopt_writes, is_low_precision, master_copy, write_rounded

ExtraPass = Literal["none", "scores", "statistics", "reevaluation"]
P = ParamSpec("P")
R = TypeVar("R")
Own = TypeVar("Own", bound="OwnPrecision")


def in_own_precision(step: Callable[Concatenate[Own, P], R]) -> Callable[Concatenate[Own, P], R]:
    """Decorate a ``step`` to run without gradients and without autocast, whatever its caller is under.

    ``callers_mode`` gives both back inside it.

    Raises:
        RuntimeError: a ``GradScaler`` calls the step, and the optimizer does not know what to unscale.
    """

    @functools.wraps(step)
    def run(self: Own, *args: P.args, **kwargs: P.kwargs) -> R:
        self.refuse_loss_scale()
        devices = {"cpu"} | {parameter.device.type for parameter in self.parameters()}
        with ExitStack() as stack:
            self._outside = [
                (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
                for device in sorted(devices)
                if torch.amp.is_autocast_available(device)
            ]
            stack.enter_context(torch.no_grad())
            for device, dtype, _ in self._outside:
                stack.enter_context(torch.autocast(device, dtype, enabled=False))
            return step(self, *args, **kwargs)

    return cast("Callable[Concatenate[Own, P], R]", run)


class OwnPrecision(SavedOptimizer):
    """An optimizer that steps each weight in the weight's own precision, and at least in float32.

    Attributes:
        extra_pass: the passes a training loop must supply in addition to the gradient: per-sample ``scores``,
            per-layer ``statistics``, a ``reevaluation`` of the same minibatch, or ``none``.
    """

    extra_pass: ClassVar[ExtraPass] = "none"
    _outside: list[tuple[str, torch.dtype, bool]] = []  # noqa: RUF012  # only ever replaced

    # -- the caller's mode -------------------------------------------------------------------------------------------

    @contextmanager
    def callers_mode(self) -> Iterator[None]:
        """Restore gradients and the autocast that the step was called under, for passes through the model."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for device, dtype, is_enabled in self._outside:
                stack.enter_context(torch.autocast(device, dtype, enabled=is_enabled))
            yield

    def run_closure(self, closure: Callable[[], Any] | None) -> Any:
        """Run a step's closure in the caller's mode and return its result; ``None`` without a closure."""
        if closure is None:
            return None
        with self.callers_mode():
            return closure()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler``: whether ``step`` is called with gradients that are still scaled."""
        return self.extra_pass != "none"

    def refuse_loss_scale(self) -> None:
        """Raise where a ``GradScaler`` left the unscaling to the optimizer.

        Raises:
            RuntimeError: it did.
        """
        if "grad_scale" in self.__dict__ or "found_inf" in self.__dict__:
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise RuntimeError(
                f"{type(self).__name__} does not step scaled losses: what it takes beside the gradient would be scaled "
                "as well; leave GradScaler out and use bfloat16 or float32, which need none"
            )

    # -- master copies -----------------------------------------------------------------------------------------------

    def weight(self, parameter: Tensor) -> Tensor:
        """Return the tensor that a step moves: the parameter, or its master copy, created where it is missing."""
        if not is_low_precision(parameter):
            return parameter
        own = self.state[parameter]
        if MASTER not in own:
            own[MASTER] = master_copy(parameter)
        master: Tensor = own[MASTER]
        return master

    def _masters(self) -> dict[Tensor, Tensor]:
        """Return every existing master copy, by parameter."""
        return {parameter: own[MASTER] for parameter, own in self.state.items() if MASTER in own}

    def adopt(self) -> None:
        """Copy every entry that another writer has changed from the weights into the master copies."""
        for parameter, own in self.state.items():
            if MASTER in own and not is_low_precision(parameter):  # the model was converted
                del own[MASTER]
        adopt_writes(self._masters())

    def round_weights(self) -> None:
        """Round every master copy into its weight."""
        write_rounded(self._masters())

    def forget(self) -> None:
        """Drop the state, except master copies, which belong to the weights."""
        masters = self._masters()
        self.state.clear()
        for parameter, master in masters.items():
            self.state[parameter][MASTER] = master


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimizer's running averages and leave the weights as they are (Kimi k1.5 does so every iteration)."""
    if isinstance(optimizer, OwnPrecision):
        optimizer.forget()
    else:
        optimizer.state.clear()

"""What every optimizer written here shares: torch's own interface, and steps that end finite or are not taken.

A step runs in the weights' own precision, whatever ``torch.autocast`` its caller is under; weights shorter than float32
are stepped on float32 copies (``copies``). Where weights or state come out NaN or infinite, both are put back, the step
is counted as skipped, and a warning says so.

State keeps its own type through ``load_state_dict`` (torch would round float32 statistics to bfloat16 weights); numbers
that belong to no weight travel in the groups, where every way of saving an optimizer finds them.

Left out: any update rule, and stopping after too many skips (the training loop's).
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from heliostat.linalg.newton_inverse import NotPositiveDefinite
from heliostat.optim.base.setting_ranges import check_group
from heliostat.optim.base.snapshot import Snapshot, stays_finite
from heliostat.optim.distributed.ddp_join import refuse_joining
from heliostat.optim.distributed.replicas import Group, check_replicas, is_due, ranks_of
from heliostat.optim.distributed.sharded_tensors import full_tensor
from heliostat.optim.precision.master_copies import MASTER, adopt_writes, is_low_precision, master_copy, write_rounded

ExtraPass = Literal["none", "scores", "statistics", "reevaluation"]
MODERATE = 1e15
"""Gradients up to this have squares that are far from float32's end."""
P = ParamSpec("P")
R = TypeVar("R")
Own = TypeVar("Own", bound="BaseOptimizer")


class SkippedStepWarning(UserWarning):
    """An optimizer step was left out because a number in it was not finite."""


class NotFinite(ArithmeticError):
    """A number that a step needs is NaN or infinite, although the gradient is finite."""


_BROKEN = (NotPositiveDefinite, LinAlgError, np.linalg.LinAlgError, ArithmeticError)
_UNCOPIED = ("_optimizer_", "_zero_grad_profile_name", "_outside")


class GroupNumber(Generic[R]):
    """A number of an optimizer that belongs to no weight; it is kept in every group."""

    def __init__(self, default: R) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: torch.optim.Optimizer | None, owner: type) -> R:
        groups = getattr(optimizer, "param_groups", None)
        return cast("R", groups[0].get(self.name, self.default)) if groups else self.default

    def __set__(self, optimizer: torch.optim.Optimizer, value: R) -> None:
        for group in optimizer.param_groups:
            group[self.name] = value


def in_own_precision(step: Callable[Concatenate[Own, P], R]) -> Callable[Concatenate[Own, P], R]:
    """Run a step without gradients and without autocast; ``BaseOptimizer.callers_mode`` gives both back inside it.

    Raises:
        RuntimeError: a ``GradScaler`` calls it, and the optimizer does not know what to unscale.
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


class BaseOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` that refuses numbers that are not finite.

    Attributes:
        extra_pass: what a training loop must supply beside the gradient: per-sample ``scores``, per-layer
            ``statistics``, a ``reevaluation`` of the same minibatch, or ``none``.
        whole_state: entries of the state that every rank keeps whole although the weights are cut over ranks.
        carried: names of numbers that belong to no weight; saved in the groups, and beside them.
        num_skipped: steps left out so far; saved with the state.
        num_steps: steps taken so far; saved with the state.
        process_group: the ranks that hold copies of the weights; ``None``: the default group, where
            ``torch.distributed`` is initialised; ``"alone"``: this rank has none to agree with.
    """

    extra_pass: ClassVar[ExtraPass] = "none"
    whole_state: ClassVar[frozenset[str]] = frozenset()
    group_numbers: ClassVar[tuple[str, ...]] = ("num_skipped", "num_steps")
    num_skipped = GroupNumber(0)
    num_steps = GroupNumber(0)
    _outside: list[tuple[str, torch.dtype, bool]] = []  # noqa: RUF012  # only ever replaced

    process_group: Group = None
    _num_calls: int = 0

    def checked_ranks(self) -> dist.ProcessGroup | None:
        """The ranks this step is taken with; at the first step and now and then they are compared. A collective.

        Raises:
            ReplicasDisagree: weights or gradients differ between ranks.
            RuntimeError: the model is inside DDP's ``join()``.
        """
        ranks = ranks_of(self.process_group)
        if ranks is not None:
            self._num_calls += 1
            if is_due(self._num_calls):
                refuse_joining(type(self).__name__)
                self.adopt()
                check_replicas(type(self).__name__, self.parameters(), ranks, self._masters())
        return ranks

    # -- a step ------------------------------------------------------------------------------------------------------

    @contextmanager
    def callers_mode(self) -> Iterator[None]:
        """Gradients and the autocast that the step was called under, for passes through the model."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for device, dtype, is_enabled in self._outside:
                stack.enter_context(torch.autocast(device, dtype, enabled=is_enabled))
            yield

    def run_closure(self, closure: Callable[[], Any] | None) -> Any:
        """What a step's closure returns; ``None`` without one."""
        if closure is None:
            return None
        with self.callers_mode():
            return closure()

    def commit(self, update: Callable[[], None]) -> bool:
        """Run ``update``; where it ends in a number that is not finite, put weights and state back and skip.

        Returns:
            Whether the step was taken. Any other error puts weights and state back as well, and is raised.
        """
        self.adopt()
        weights, state = self._stepped()
        before = Snapshot(weights, state)
        try:
            update()
            self.round_weights()
            is_good = stays_finite(weights, state)
        except _BROKEN:
            is_good = False
        except BaseException:
            before.restore()
            raise
        if not is_good:
            before.restore()
            self.skip("the move or the new state")
            return False
        self.num_steps += 1
        return True

    def _stepped(self) -> tuple[list[Tensor], dict[Tensor, dict[str, Any]]]:
        """Everything that a step may write: weights with a gradient, and the state."""
        weights = [parameter for group in self.param_groups for parameter in self.with_gradient(group)]
        return weights, cast("dict[Tensor, dict[str, Any]]", self.state)

    def commit_step_of(self, inner: torch.optim.Optimizer) -> None:
        """``commit`` a step of an optimizer that this one drives; a skip of its is ours.

        Torch's own rules treat every number by itself and cannot leave the range from gradients of moderate size, so
        that no copies are made for those.
        """
        if isinstance(inner, BaseOptimizer) and inner.param_groups is self.param_groups:  # its counts are ours
            inner.step()
            return

        def update() -> None:
            num_skipped = getattr(inner, "num_skipped", 0)
            inner.step()
            if getattr(inner, "num_skipped", 0) != num_skipped:
                raise NotFinite("the inner step")

        if isinstance(inner, BaseOptimizer) or not _largest_norm(inner) <= MODERATE:
            self.commit(update)
        else:
            self.adopt()
            update()
            self.round_weights()
            self.num_steps += 1

    def skip(self, what: str) -> None:
        """Count and warn of a step that is left out; weights and state stay as they are."""
        self.num_skipped += 1
        warnings.warn(
            f"{type(self).__name__}: {what} is NaN or infinite, so the step is skipped ({self.num_skipped} so far); "
            "weights and state are unchanged",
            SkippedStepWarning,
            stacklevel=5,
        )

    def would_move_nothing(self) -> bool:
        """Whether every learning rate and every gradient is 0.

        So ``torch.distributed.checkpoint`` steps an optimizer that has no state yet, to be given all of it.
        """
        if any(float(group["lr"]) for group in self.param_groups):
            return False
        given = [p.grad for group in self.param_groups for p in self.with_gradient(group) if p.grad is not None]
        return not any(bool((gradient != 0).any()) for gradient in given)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler``: whether ``step`` is called with gradients that are still scaled."""
        return self.extra_pass != "none"

    def refuse_loss_scale(self) -> None:
        """Raise where a ``GradScaler`` left its scale to us."""
        if "grad_scale" in self.__dict__ or "found_inf" in self.__dict__:
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise RuntimeError(
                f"{type(self).__name__} does not step scaled losses: what it takes beside the gradient would be scaled "
                "as well; leave GradScaler out and use bfloat16 or float32, which need none"
            )

    # -- weights shorter than float32 --------------------------------------------------------------------------------

    def weight(self, parameter: Tensor) -> Tensor:
        """The tensor that a step moves: the parameter, or the float32 copy of one that is kept in a shorter type."""
        if not is_low_precision(parameter):
            return parameter
        own = self.state[parameter]
        if MASTER not in own:
            own[MASTER] = master_copy(parameter)
        copied: Tensor = own[MASTER]
        return copied

    def _masters(self) -> dict[Tensor, Tensor]:
        """Every float32 copy that there is, by parameter."""
        return {parameter: own[MASTER] for parameter, own in self.state.items() if MASTER in own}

    def adopt(self) -> None:
        """Take over every weight that another writer has changed; one pass over the weights, nothing is remembered."""
        for parameter, own in self.state.items():
            if MASTER in own and not is_low_precision(parameter):  # the model was converted
                del own[MASTER]
        adopt_writes(self._masters())

    def round_weights(self) -> None:
        """Write the rounding of every copy into its weight."""
        write_rounded(self._masters())

    def forget(self) -> None:
        """Drop everything in the state but the copies, which belong to the weights."""
        copies = self._masters()
        self.state.clear()
        for parameter, copied in copies.items():
            self.state[parameter][MASTER] = copied

    # -- parameters --------------------------------------------------------------------------------------------------

    def parameters(self) -> list[Tensor]:
        """Every parameter of every group."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def with_gradient(self, group: dict[str, Any]) -> list[Tensor]:
        """The group's parameters that have a gradient; the others take no part in a step."""
        found = [parameter for parameter in group["params"] if parameter.grad is not None]
        if any(parameter.grad.is_sparse for parameter in found):
            raise RuntimeError(f"{type(self).__name__} does not take sparse gradients; make the embedding dense")
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters; settings that the group does not give are the optimizer's defaults.

        Raises:
            ValueError: a setting out of range, or weights that are not real floating-point numbers.
        """
        if isinstance(param_group, dict) and not isinstance(param_group["params"], set):
            given = param_group["params"]
            param_group["params"] = [given] if isinstance(given, Tensor) else list(given)
            check_group({**self.defaults, **param_group}, type(self).__name__)
        super().add_param_group(param_group)
        for name in self.group_numbers:
            param_group.setdefault(name, getattr(self, name))

    # -- saving, copying, printing -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and groups; what is ``carried`` stands beside them and in every group."""
        self.adopt()
        handle = self.register_state_dict_post_hook(lambda _, saved: self._add_to(saved), prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def _add_to(self, saved: dict[str, Any]) -> None:
        saved.update({name: getattr(self, name) for name in self.group_numbers})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved, every tensor in the type it was saved in."""
        given: dict[str, Any] = {}
        handles = [
            self.register_load_state_dict_pre_hook(lambda _, final: given.update(final)),
            self.register_load_state_dict_post_hook(lambda _: self._restore(given), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _restore(self, saved: dict[str, Any]) -> None:
        for name in self.group_numbers:
            setattr(self, name, saved.get(name, getattr(self, name)))
        saved_ids = [index for group in saved["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved_ids, self.parameters(), strict=True):
            for key, value in saved["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.detach().to(parameter.device, copy=True)
        self.adopt()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks, which as in torch stay with the original."""
        return {name: value for name, value in self.__dict__.items() if name != "step" and not _is_uncopied(name)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved before a setting existed
            for name in self.defaults.keys() - {"differentiable"}:
                group.setdefault(name, self.defaults[name])

    def __deepcopy__(self, memo: dict[int, Any]) -> BaseOptimizer:
        ranks = getattr(self, "process_group", None)
        memo[id(ranks)] = ranks  # a handle; a copy talks to the same ranks
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __repr__(self) -> str:
        """Settings of the optimizer, then of each group."""
        own = {
            name: value
            for name, value in sorted(self.__dict__.items())
            if not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | None)
        }
        lines = "".join(f"\n{name}: {value}" for name, value in own.items())
        return super().__repr__().replace(" (\n", f" ({lines}\n", 1)


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Start the optimizer's running averages afresh, weights untouched (what Kimi k1.5 does every iteration)."""
    if isinstance(optimizer, BaseOptimizer):
        optimizer.forget()
    else:
        optimizer.state.clear()


def _is_uncopied(name: str) -> bool:
    return name.startswith(_UNCOPIED)


@torch.no_grad()
def _largest_norm(optimizer: torch.optim.Optimizer) -> float:
    """NaN where one is NaN; one read."""
    given = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch._foreach_norm(given) if given else []  # the largest entry alone takes ten times as long
    return float(torch.stack([full_tensor(norm).float().cpu() for norm in norms]).max()) if norms else 0.0

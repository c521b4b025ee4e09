"""The base class of every optimizer here: steps that end finite or are not taken, on ranks that agree.

Where a step would make a weight or the state NaN or infinite, both are restored, the step is counted as skipped, and a
warning says so. Precision and saving are the parent classes' (``own_precision``, ``saving``).

Left out: any update rule, and stopping after too many skips (the training loop's).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from heliostat.linalg.newton_inverse import NotPositiveDefinite
from heliostat.optim.base.own_precision import OwnPrecision
from heliostat.optim.base.saving import GroupNumber
from heliostat.optim.base.settings import check_group
from heliostat.optim.base.snapshot import OptimizerState, Snapshot, stays_finite
from heliostat.optim.base.update_parts import NotFinite
from heliostat.optim.distributed.ddp_join import refuse_joining
from heliostat.optim.distributed.replicas import ProcessGroup, check_replicas, is_due, ranks_of
from heliostat.optim.distributed.sharded_tensors import full_tensor

SAFE_NORM = 1e15
"""Gradients up to this norm have squares far below the largest float32."""


class SkippedStepWarning(UserWarning):
    """An optimizer step was left out because a number in it was not finite."""


_FAILURES = (NotPositiveDefinite, LinAlgError, np.linalg.LinAlgError, ArithmeticError)
"""Errors of a step that mean the same as a number that is not finite."""


class BaseOptimizer(OwnPrecision):
    """A ``torch.optim.Optimizer`` that skips steps whose result would not be finite.

    Attributes:
        whole_state: entries of the state that every rank keeps whole although the weights are sharded over ranks.
        num_skipped: steps left out so far; saved with the state.
        num_steps: steps taken so far; saved with the state.
        process_group: the ranks that hold copies of the weights; ``None``: the default group, where
            ``torch.distributed`` is initialised; ``"alone"``: this rank has none to agree with.
    """

    whole_state: ClassVar[frozenset[str]] = frozenset()
    group_numbers: ClassVar[tuple[str, ...]] = ("num_skipped", "num_steps")
    num_skipped = GroupNumber(0)
    num_steps = GroupNumber(0)
    process_group: ProcessGroup = None
    _num_calls: int = 0

    # -- parameters and gradients ------------------------------------------------------------------------------------

    def with_gradient(self, group: dict[str, Any]) -> list[Tensor]:
        """List the group's parameters that have a gradient; the others take no part in a step."""
        found = [parameter for parameter in group["params"] if parameter.grad is not None]
        if any(parameter.grad.is_sparse for parameter in found):
            raise RuntimeError(f"{type(self).__name__} does not take sparse gradients; make the embedding dense")
        return found

    def groups_with_gradient(self) -> dict[Tensor, dict[str, Any]]:
        """Return the group of every parameter that has a gradient, in the groups' order."""
        return {parameter: group for group in self.param_groups for parameter in self.with_gradient(group)}

    def gradients(self) -> dict[Tensor, Tensor]:
        """Return every gradient in place, by parameter."""
        return {p: p.grad for group in self.param_groups for p in self.with_gradient(group) if p.grad is not None}

    def would_move_nothing(self) -> bool:
        """Return whether every learning rate and every gradient is 0.

        ``torch.distributed.checkpoint`` steps an optimizer like that to have it create all of its state.
        """
        if any(float(group["lr"]) for group in self.param_groups):
            return False
        return not any(bool((gradient != 0).any()) for gradient in self.gradients().values())

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

    # -- a step ------------------------------------------------------------------------------------------------------

    def checked_ranks(self) -> dist.ProcessGroup | None:
        """Return the ranks this step is taken with, comparing them at the first step and now and then; a collective.

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

    def commit(self, update: Callable[[], None]) -> bool:
        """Run ``update``; where it leaves a number that is not finite, restore weights and state and skip the step.

        Any other error restores weights and state as well, and is raised.

        Returns:
            Whether the step was taken.
        """
        self.adopt()
        weights, state = self._written()
        before = Snapshot(weights, state)
        try:
            update()
            self.round_weights()
            is_good = stays_finite(weights, state)
        except _FAILURES:
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

    def _written(self) -> tuple[list[Tensor], OptimizerState]:
        """Return everything that a step may write: weights with a gradient, and the state."""
        return list(self.groups_with_gradient()), cast("OptimizerState", self.state)

    def commit_step_of(self, inner: torch.optim.Optimizer) -> None:
        """Commit a step of an optimizer that this one drives; a step that it skips counts as skipped here.

        Torch's own rules treat every number by itself and cannot leave the range from gradients of moderate size, so
        no snapshot is taken for those.
        """
        if isinstance(inner, BaseOptimizer) and inner.param_groups is self.param_groups:  # shared counts
            inner.step()
            return

        def update() -> None:
            num_skipped = getattr(inner, "num_skipped", 0)
            inner.step()
            if getattr(inner, "num_skipped", 0) != num_skipped:
                raise NotFinite("the inner step")

        if isinstance(inner, BaseOptimizer) or not _largest_norm(inner) <= SAFE_NORM:
            self.commit(update)
        else:
            self.adopt()
            update()
            self.round_weights()
            self.num_steps += 1

    def skip(self, subject: str) -> None:
        """Count a step that is left out because ``subject`` is not finite, and warn; nothing has moved."""
        self.num_skipped += 1
        warnings.warn(
            f"{type(self).__name__}: {subject} is NaN or infinite, so the step is skipped ({self.num_skipped} so far); "
            "weights and state are unchanged",
            SkippedStepWarning,
            stacklevel=5,
        )


@torch.no_grad()
def _largest_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest norm of a gradient, NaN where one is NaN, with one read from the device."""
    given = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch._foreach_norm(given) if given else []  # finding the largest entry takes ten times as long
    return float(torch.stack([full_tensor(norm).float().cpu() for norm in norms]).max()) if norms else 0.0

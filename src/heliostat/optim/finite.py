"""What every optimizer written here shares: a step that is not finite is skipped, counted and warned of.

Also: a step's closure, counters, and groups under AdamW beside the optimizer's own; state keeps its own type through
``load_state_dict`` (torch would round float32 statistics to bfloat16 weights).

Left out: any update rule, and stopping after too many skips (the training loop's).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.optim.replicas import Group, check_replicas, is_due, ranks_of

ExtraPass = Literal["none", "scores", "statistics", "reevaluation"]


class SkippedStepWarning(UserWarning):
    """An optimizer step was left out because a number in it was not finite."""


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What a step's closure returns, run with gradients; ``None`` without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class FiniteStep(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` that refuses numbers that are not finite.

    Attributes:
        extra_pass: what a training loop must supply beside the gradient: per-sample ``scores``, per-layer
            ``statistics``, a ``reevaluation`` of the same minibatch, or ``none``.
        whole_state: entries of the state that every rank keeps whole although the weights are cut over ranks.
        num_skipped: steps left out so far; saved with the state.
        num_steps: steps taken so far; saved with the state.
        process_group: the ranks that hold copies of the weights; ``None``: the default group, where
            ``torch.distributed`` is initialised; ``"alone"``: this rank has none to agree with.
    """

    extra_pass: ClassVar[ExtraPass] = "none"
    whole_state: ClassVar[frozenset[str]] = frozenset()
    num_skipped: int = 0
    num_steps: int = 0
    process_group: Group = None
    _num_calls: int = 0

    def agreed_ranks(self) -> dist.ProcessGroup | None:
        """The ranks this step is taken with; at the first step and now and then they are compared. A collective.

        Raises:
            ReplicasDisagree: weights or gradients differ between ranks.
        """
        ranks = ranks_of(self.process_group)
        if ranks is not None:
            self._num_calls += 1
            if is_due(self._num_calls):
                check_replicas(type(self).__name__, self.parameters(), ranks)
        return ranks

    def skip(self, what: str) -> None:
        """Count and warn of a step that is left out; weights and state stay as they are."""
        self.num_skipped += 1
        warnings.warn(
            f"{type(self).__name__}: {what} is NaN or infinite, so the step is skipped ({self.num_skipped} so far); "
            "weights and state are unchanged",
            SkippedStepWarning,
            stacklevel=3,
        )

    def parameters(self) -> list[Tensor]:
        """Every parameter of every group."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def with_gradient(self, group: dict[str, Any]) -> list[Tensor]:
        """The group's parameters that have a gradient; the others take no part in a step."""
        found = [parameter for parameter in group["params"] if parameter.grad is not None]
        if any(parameter.grad.is_sparse for parameter in found):
            raise RuntimeError(f"{type(self).__name__} does not take sparse gradients; make the embedding dense")
        return found

    def state_dict(self) -> dict[str, Any]:
        """State, groups, and the numbers of steps taken and skipped."""
        return {**super().state_dict(), "num_skipped": self.num_skipped, "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved, every tensor in the type it was saved in."""
        super().load_state_dict(state_dict)
        self.num_skipped, self.num_steps = state_dict["num_skipped"], state_dict["num_steps"]
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved_ids, self.parameters(), strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)

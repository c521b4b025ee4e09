"""Master weights for torch's own optimizers: they step float32 copies of weights of a lower-precision dtype.

Left out: the arithmetic of the copies (``precision.master_copies``), float16, and loss scaling, which bfloat16 does not
need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from heliostat.optim.base.optimizer import BaseOptimizer
from heliostat.optim.base.own_precision import in_own_precision
from heliostat.optim.base.param_groups import ParamGroups
from heliostat.optim.base.snapshot import OptimizerState
from heliostat.optim.distributed.replicas import ProcessGroup
from heliostat.optim.precision.master_copies import MASTER, is_low_precision, master_copy


class MasterWeights(BaseOptimizer):
    """Any optimizer, applied in float32 to parameters of a lower-precision dtype.

    ``m <- w where w != round(m)``, ``m <- step(m, float32(g))``, then ``w <- round(m)``.

    Args:
        groups: parameter groups of the model's own weights.
        make: builds the inner optimizer from the same groups over float32 copies. Its settings become those of the
            outer groups, where schedules find them.
        process_group: ranks whose weights and gradients must agree; ``None``: the default group, ``"alone"``: none.

    Limits:
        float32 weights: the inner optimizer itself, bit for bit.
        Weights written between two steps, however that is done: the next step starts from the written values.
        An entry that is written with the value it has keeps its copy's further digits.
        Gradients may be float32 (``accumulate_in_float32``) or of the weights' own dtype.
    """

    def __init__(
        self,
        groups: ParamGroups,
        make: Callable[[ParamGroups], torch.optim.Optimizer],
        process_group: ProcessGroup = None,
    ) -> None:
        self.masters: dict[Tensor, Tensor] = {}
        self.process_group = process_group
        super().__init__(groups, {})
        self.inner = make([self._over_copies(group) for group in self.param_groups])
        self.defaults = dict(self.inner.defaults)
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update(_settings(theirs))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters on copies of theirs; see ``BaseOptimizer.add_param_group``."""
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            self.masters[parameter] = master_copy(parameter)
        if hasattr(self, "inner"):
            self.inner.add_param_group(self._over_copies(param_group))

    def _over_copies(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**_settings(group), "params": [self.masters[parameter] for parameter in group["params"]]}

    def _masters(self) -> dict[Tensor, Tensor]:
        return self.masters

    def adopt(self) -> None:
        """Adopt every weight that another writer has changed; see ``OwnPrecision.adopt``.

        Raises:
            RuntimeError: the weights were converted to a dtype that the copies cannot hold.
        """
        for parameter, master in self.masters.items():
            if torch.promote_types(parameter.dtype, master.dtype) != master.dtype:
                raise RuntimeError(
                    f"weights were converted to {parameter.dtype} after the optimizer was made, and its copies are "
                    f"{master.dtype}: convert the model first, or make another optimizer over it"
                )
        super().adopt()

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one inner step on the copies, with the learning rates of the outer groups."""
        loss = self.run_closure(closure)
        if self.would_move_nothing() and self.inner.state:
            return loss
        self.checked_ranks()
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update(_settings(ours))
        for parameter, master in self.masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        try:
            self.commit_step_of(self.inner)
        finally:
            for master in self.masters.values():
                master.grad = None
        self._share()
        return loss

    def _share(self) -> None:
        """Mirror the inner state, with the copies, in ``state``, where readers of an optimizer's state look for it."""
        for parameter, master in self.masters.items():
            self.state[parameter] = {**self.inner.state.get(master, {}), MASTER: master}

    def forget(self) -> None:
        """Drop the inner state; the copies stay."""
        self.inner.state.clear()
        self.state.clear()

    def _written(self) -> tuple[list[Tensor], OptimizerState]:
        weights = [*self.masters, *self.masters.values()]
        return weights, cast("OptimizerState", self.inner.state)

    def _add_to(self, saved: dict[str, Any]) -> None:
        super()._add_to(saved)
        ids = [index for group in saved["param_groups"] for index in group["params"]]
        saved["state"] = {
            index: {**self.inner.state.get(master, {}), MASTER: master}
            for index, master in zip(ids, self.masters.values(), strict=True)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved, which holds master copies and no weights: load those into the model.

        Raises:
            ValueError: it was saved without copies, by an optimizer of float32 weights.
        """
        ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        if not all(MASTER in state_dict["state"].get(index, {}) for index in ids):
            raise ValueError("it holds no float32 copies: the weights were float32 when it was saved, and are not now")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> None:
        super()._restore(saved)
        self.inner.state.clear()
        for parameter, master in self.masters.items():
            entries = dict(self.state.pop(parameter, {}))
            if MASTER in entries:
                master.copy_(entries.pop(MASTER))
            if entries:
                self.inner.state[master] = entries
        self._share()


def with_master_weights(
    groups: ParamGroups, make: Callable[[ParamGroups], torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Build an optimizer from groups, with master weights where a weight's dtype is below float32."""
    given = [item for group in groups for item in group["params"]]
    is_any_short = any(is_low_precision(item[1] if isinstance(item, tuple) else item) for item in given)
    return MasterWeights(groups, make) if is_any_short else make(groups)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}

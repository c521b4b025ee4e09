"""float32 master copies for weights that are kept in a shorter type.

A bfloat16 weight near 1 cannot change by less than 0.4%, so that most updates of a small learning rate would vanish.
The wrapped optimizer therefore works on float32 copies, and the weights are the rounded copies after every step.

The copies belong to the weights, not the other way round: whoever writes weights (a warm start, a checkpoint, another
optimizer, a user between two steps) need not know of them. An entry that is not its copy's rounding was written by
somebody else, and is taken over before the copies are used or saved.

Left out: loss scaling (bfloat16 has float32's range), and float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from heliostat.optim.finite import FiniteStep, in_own_precision

Groups = list[dict[str, Any]]


class MasterWeights(FiniteStep):
    """Any optimizer, applied in float32 to parameters of a shorter type.

    ``m <- w where w != round(m)``, ``m <- step(m, float32(g))``, then ``w <- round(m)``.

    Args:
        groups: parameter groups of the model's own weights.
        make: builds the inner optimizer from the same groups over float32 copies. Its settings are those of our groups
            from then on, where schedules find them.

    Limits:
        float32 weights: the inner optimizer itself, bit for bit.
        Weights written between two steps, however that is done: the next step is that of copies of what was written.
        An entry that is written with the value it has keeps what its copy has beyond that value.
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], torch.optim.Optimizer]) -> None:
        self.masters: dict[Tensor, Tensor] = {}
        super().__init__(groups, {})
        self.inner = make([self._over_copies(group) for group in self.param_groups])
        self.defaults = dict(self.inner.defaults)
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update(_settings(theirs))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step further parameters on copies of theirs; see ``FiniteStep.add_param_group``."""
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            self.masters[parameter] = parameter.detach().clone().float()
        if hasattr(self, "inner"):
            self.inner.add_param_group(self._over_copies(param_group))

    def _over_copies(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**_settings(group), "params": [self.masters[parameter] for parameter in group["params"]]}

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over every weight that somebody else has written; one pass over the weights, nothing is remembered."""
        for parameter, master in self.masters.items():
            weight, copy = _here(parameter), _here(master)
            torch.where(weight == copy.to(weight.dtype), copy, weight.to(copy.dtype), out=copy)

    @in_own_precision
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One inner step on the copies; learning rates set on our groups are handed through."""
        loss = self.evaluated(closure)
        self.adopt()
        if self.would_move_nothing() and self.inner.state:
            return loss
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update(_settings(ours))
        for parameter, master in self.masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.float()
        try:
            self.commit_step_of(self.inner, self._round)
        finally:
            for master in self.masters.values():
                master.grad = None
        self._share()
        return loss

    def _share(self) -> None:
        """Show the inner state, with the copies, as ours: what reads an optimizer's state finds it there."""
        for parameter, master in self.masters.items():
            if master in self.inner.state:
                self.state[parameter] = {**self.inner.state[master], "master": master}

    def forget(self) -> None:
        """Drop the inner state; the copies stay."""
        self.inner.state.clear()
        self.state.clear()

    def _round(self) -> None:
        for parameter, master in self.masters.items():
            parameter.copy_(master)

    def _stepped(self) -> tuple[list[Tensor], dict[Tensor, dict[str, Any]]]:
        weights = [*self.masters, *self.masters.values()]
        return weights, cast("dict[Tensor, dict[str, Any]]", self.inner.state)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state with, for every parameter, its copy, which the weight cannot restore."""
        self.adopt()
        return super().state_dict()

    def _add_to(self, saved: dict[str, Any]) -> None:
        super()._add_to(saved)
        ids = [index for group in saved["param_groups"] for index in group["params"]]
        saved["state"] = {
            index: {**self.inner.state.get(master, {}), "master": master}
            for index, master in zip(ids, self.masters.values(), strict=True)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved; the weights are restored by whoever restores the model.

        Raises:
            ValueError: it was saved without copies, by an optimizer of float32 weights.
        """
        ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        if not all("master" in state_dict["state"].get(index, {}) for index in ids):
            raise ValueError("it holds no float32 copies: the weights were float32 when it was saved, and are not now")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> None:
        super()._restore(saved)
        self.inner.state.clear()
        for parameter, master in self.masters.items():
            entries = dict(self.state.pop(parameter))
            master.copy_(entries.pop("master"))
            if entries:
                self.inner.state[master] = entries
        self._share()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def _here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut over ranks; its own memory."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.detach()

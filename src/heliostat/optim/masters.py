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
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Groups = list[dict[str, Any]]


class MasterWeights(torch.optim.Optimizer):
    """Any optimizer, applied in float32 to parameters of a shorter type.

    ``m <- w where w != round(m)``, ``m <- step(m, float32(g))``, then ``w <- round(m)``.

    Args:
        groups: parameter groups of the model's own weights.
        make: builds the inner optimizer from the same groups over float32 copies.

    Limits:
        float32 weights: the inner optimizer itself, bit for bit.
        Weights written between two steps, however that is done: the next step is that of copies of what was written.
        An entry that is written with the value it has keeps what its copy has beyond that value.
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], torch.optim.Optimizer]) -> None:
        super().__init__(groups, {})
        self.masters = {
            parameter: parameter.detach().clone().float() for group in groups for parameter in group["params"]
        }
        self.inner = make([{**group, "params": [self.masters[p] for p in group["params"]]} for group in groups])

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over every weight that somebody else has written; one pass over the weights, nothing is remembered."""
        for parameter, master in self.masters.items():
            weight, copy = _here(parameter), _here(master)
            torch.where(weight == copy.to(weight.dtype), copy, weight.to(copy.dtype), out=copy)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One inner step on the copies; learning rates set on our groups are handed through."""
        self.adopt()
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update({key: value for key, value in ours.items() if key != "params"})
        for parameter, master in self.masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.float()
        result = self.inner.step(closure)
        for parameter, master in self.masters.items():
            parameter.copy_(master)
            master.grad = None
        return result

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the copies themselves, which the rounded weights cannot restore."""
        self.adopt()
        copies: list[Tensor] = list(self.masters.values())
        return {"inner": self.inner.state_dict(), "masters": copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved; the weights are restored by whoever restores the model.

        Raises:
            ValueError: it was saved without copies, by an optimizer of float32 weights.
        """
        if "masters" not in state_dict:
            raise ValueError("it holds no float32 copies: the weights were float32 when it was saved, and are not now")
        for master, stored in zip(self.masters.values(), state_dict["masters"], strict=True):
            master.copy_(stored)
        self.inner.load_state_dict(state_dict["inner"])


def _here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut over ranks; its own memory."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.detach()

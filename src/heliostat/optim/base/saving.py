"""Saving, copying and printing of optimizers.

State keeps its own dtype through ``load_state_dict``, where torch would round float32 statistics to bfloat16 weights.
Numbers that belong to no weight are stored in the parameter groups, where every way of saving an optimizer finds them:
``torch.distributed.checkpoint`` carries state and groups only.

Left out: any update rule.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
_NOT_COPIED = ("_optimizer_", "_zero_grad_profile_name", "_outside")
"""Prefixes of attributes that stay with the original: hooks, as in torch, and what belongs to one call of ``step``."""


class GroupNumber(Generic[T]):
    """An attribute that is stored as an entry of every parameter group, because it belongs to no weight."""

    def __init__(self, default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: torch.optim.Optimizer | None, owner: type) -> T:
        groups = getattr(optimizer, "param_groups", None)
        return cast("T", groups[0].get(self.name, self.default)) if groups else self.default

    def __set__(self, optimizer: torch.optim.Optimizer, value: T) -> None:
        for group in optimizer.param_groups:
            group[self.name] = value


class SavedOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose state and counts survive every way of saving and copying unchanged.

    Attributes:
        group_numbers: names of the ``GroupNumber`` attributes; saved in the groups, and next to them in the state dict.
        settings: the hyperparameters, a dataclass; shown when the optimizer is printed.
    """

    group_numbers: ClassVar[tuple[str, ...]] = ()
    settings: DataclassInstance | None = None

    def parameters(self) -> list[Tensor]:
        """List every parameter of every group."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def adopt(self) -> None:
        """Bring the state up to date with the weights, before it is saved and after it is loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups; ``group_numbers`` are saved next to them as well."""
        self.adopt()
        handle = self.register_state_dict_post_hook(lambda _, saved: self._add_to(saved), prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def _add_to(self, saved: dict[str, Any]) -> None:
        """Add further entries to what ``state_dict`` returns, before any hook sees it."""
        saved.update({name: getattr(self, name) for name in self.group_numbers})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved, every tensor in the dtype it was saved in."""
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
        """Undo torch's casts: put tensors back in the dtype they were saved in, and numbers into the groups."""
        for name in self.group_numbers:
            setattr(self, name, saved.get(name, getattr(self, name)))
        saved_ids = [index for group in saved["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved_ids, self.parameters(), strict=True):
            for key, value in saved["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.detach().to(parameter.device, copy=True)
        self.adopt()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but hooks and a patched ``step``, which stay with the original as in torch."""
        return {
            name: value for name, value in self.__dict__.items() if name != "step" and not name.startswith(_NOT_COPIED)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved before a setting existed
            for name in self.defaults.keys() - {"differentiable"}:
                group.setdefault(name, self.defaults[name])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        ranks = getattr(self, "process_group", None)
        memo[id(ranks)] = ranks  # a handle: a copy talks to the same ranks
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __repr__(self) -> str:
        """Show the settings of the optimizer, then those of each group."""
        settings = asdict(self.settings) if self.settings is not None else {}
        own = {name: value for name, value in settings.items() if name not in self.defaults}
        own |= {name: value for name, value in vars(self).items() if not name.startswith("_") and _is_plain(value)}
        lines = "".join(f"\n{name}: {value}" for name, value in sorted(own.items()))
        return super().__repr__().replace(" (\n", f" ({lines}\n", 1)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | None)

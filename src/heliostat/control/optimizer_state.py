"""The state of an optimizer when settings, parameters or files change around it.

One rule: settings are the model's, state is the file's. State that does not fit is left out, with a warning.

Left out: building the optimizers (``directions``, ``smac``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

NOT_SETTINGS = ("params", "param_names")


def fits(saved: Mapping[str, Any], optimizer: Optimizer) -> bool:
    """Whether a saved state has the optimizer's groups, with as many parameters in each."""
    groups = saved["param_groups"]
    return [len(group["params"]) for group in groups] == [len(group["params"]) for group in optimizer.param_groups]


def take_settings(optimizer: Optimizer, fresh: Optimizer) -> None:
    """Overwrite the settings of every group by those of an optimizer that was just built."""
    kept = {*NOT_SETTINGS, *getattr(optimizer, "carried", ())}
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({key: value for key, value in new.items() if key not in kept})


def carry_state(old: Optimizer, new: Optimizer) -> None:
    """Move the state of parameters that both optimizers have, counts of steps included."""
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]
    for count in getattr(new, "carried", ()):
        if hasattr(old, count):
            setattr(new, count, getattr(old, count))


def let_go(optimizer: Optimizer) -> None:
    """Remove the hooks that an optimizer of layers has on its model."""
    recorder = getattr(optimizer, "recorder", None)
    if recorder is not None:
        recorder.close()


def fused_where_possible(kind: type[Optimizer], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add Adam's fused form, a fifth of the time on small networks, to settings that choose no form."""
    chosen = any(settings.get(form) for form in ("foreach", "fused", "differentiable"))
    return dict(settings) if chosen or kind is not torch.optim.Adam else {"fused": True, **settings}

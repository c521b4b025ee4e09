"""Weights that were replaced by other parameters after their optimizer was constructed, which is refused.

``load_state_dict(assign=True)``, ``fully_shard`` and an assignment leave the optimizer with parameters that no model
has. They get no gradient, and every step does nothing without saying so.

Left out: parameters that a model gains under new names, which another optimizer may train.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn


def refuse_replaced_weights(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Check before every step of ``optimizer`` that ``model`` still has the parameters it has now.

    The step raises a ``RuntimeError`` where a name of the model holds another trainable parameter, which the optimizer
    does not have. A weight that was tied to another one in the meantime is accepted. The model is not kept alive.
    """
    before = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    held = weakref.ref(model)

    def check(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        now = held()
        if now is None:
            return
        new = [
            (name, parameter)
            for name, parameter in now.named_parameters(remove_duplicate=False)
            if parameter.requires_grad and before.get(name, id(parameter)) != id(parameter)
        ]
        known = {id(p) for group in stepped.param_groups for p in group["params"]} if new else set()
        lost = [name for name, parameter in new if id(parameter) not in known]
        if lost:
            raise RuntimeError(
                f"'{lost[0]}' is another parameter than when the optimizer was made, and would not be trained: write "
                "into the old one (load_state_dict without assign=True), or make the optimizer after it is replaced"
            )

    optimizer.register_step_pre_hook(check)

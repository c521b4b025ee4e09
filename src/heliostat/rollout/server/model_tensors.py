"""A model's tensors by their names in its state, as they are written for a server.

Left out: the writing (``models.save_model``, ``models.lora``).
"""

from __future__ import annotations

import torch


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model.state_dict()`` without its hooks, which would shard sharded weights again."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors

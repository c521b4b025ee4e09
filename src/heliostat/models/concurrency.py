"""Models that several threads can run at the same time, each on data of its own.

Left out: copies that share its weights (``sampler_copy``), which each have their own modules.
"""

from __future__ import annotations

from torch import nn

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings of transformers that keep, in the module, frequencies for the length of the text at hand."""


def runs_in_threads(model: nn.Module) -> bool:
    """Return whether no hook watches the model's passes, and no module is known to keep what a pass computes."""
    kept = any(getattr(module, "rope_type", "") in LENGTH_DEPENDENT for module in model.modules())
    return not kept and not is_watched(model)


def is_watched(model: nn.Module) -> bool:
    """Return whether hooks watch the model's passes, as those of layer-wise optimizers do."""
    hooks = [
        hook
        for module in model.modules()
        for registry in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
            *(parameter._backward_hooks or {} for parameter in module.parameters(recurse=False)),
        )
        for hook in registry.values()
    ]
    # Those of transformers keep no state: they collect outputs that somebody asks a forward pass for.
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)

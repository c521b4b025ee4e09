"""Trade time for memory: keep only each layer's input, and recompute its activations in the backward pass.

Values and gradients are those of the plain forward. Only the layers' own switch is set, and only during a forward that
needs gradients, so dropout stays off and sampling keeps its cache.

Left out: a choice of layers, and offloading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from heliostat.models.transformers_internals import GradientCheckpointingLayer, recompute_layer


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Recompute the activations of every layer of ``model`` whose forward runs inside the block with gradients.

    **Limits**: nothing changes without gradients, or for a model without such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not torch.is_grad_enabled():
        layers = []
    for layer in layers:
        recompute_layer(layer, partial(_recomputed, layer))
        layer.training = True  # required by the switch; the layer's own forward runs in eval mode (``_recomputed``)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """Run a layer's forward, and again in the backward pass, both times in eval mode: some layers apply dropout."""

    def in_eval_mode(*given: Any) -> Any:
        before, layer.training = layer.training, False
        try:
            return forward(*given)
        finally:
            layer.training = before

    return checkpoint(in_eval_mode, *inputs, use_reentrant=False)

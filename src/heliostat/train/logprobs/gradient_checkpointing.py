"""Trade time for memory: keep each layer's input only, and compute its inside again in the backward pass.

Values and gradients are those of the plain forward. Only the layers' own switch is set, and only during a forward that
needs gradients, so dropout stays off and sampling keeps its cache.

Left out: which layers are worth it, and offloading.
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
    """Recompute the insides of every layer of ``model`` whose forward runs in here with gradients.

    **Limits**: without gradients nothing changes; a model without such layers is run as ever.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not torch.is_grad_enabled():
        layers = []
    for layer in layers:
        recompute_layer(layer, partial(_recomputed, layer))
        layer.training = True  # which is asked for; the layer's own forward runs without (``_recomputed``)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """A layer's forward, now and again in the backward pass, both times in eval mode: some drop out by themselves."""

    def quiet(*given: Any) -> Any:
        before, layer.training = layer.training, False
        try:
            return forward(*given)
        finally:
            layer.training = before

    return checkpoint(quiet, *inputs, use_reentrant=False)

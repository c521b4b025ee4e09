"""Wrap the undocumented parts of transformers that this project uses, in one place.

Names that moved or changed their meaning between the versions that ``pyproject.toml`` allows are handled here, so that
no other file checks a version. ``benchmarks/families/versions.py`` tries the lowest and the newest.

Left out: the documented interface (``AutoModelForCausalLM``, ``DynamicCache``, ...), used where it is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

__all__ = [
    "CacheLayerMixin",
    "Conv1D",
    "DynamicLayer",
    "GradientCheckpointingLayer",
    "accepts",
    "attention_in_use",
    "memory_argument",
    "memory_of",
    "num_queries",
    "recompute_layer",
    "register_attention",
    "takes_attention_functions",
    "usual_attention",
    "with_attention",
]

MEMORY_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems")
"""What a forward calls the memory it takes and returns: the newest name first, then older and recurrent models'."""


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def accepts(module: nn.Module, argument: str) -> bool:
    """Return whether a module's forward names this argument."""
    return argument in _parameters(type(module).forward)


def memory_argument(module: nn.Module) -> str | None:
    """Return the name of the cache argument of a module's forward; ``None`` if it takes none."""
    return next((name for name in MEMORY_NAMES if accepts(module, name)), None)


def memory_of(output: Any) -> Any:
    """Return the cache in a forward's output; ``None`` if it has none."""
    return next((output[name] for name in MEMORY_NAMES if output.get(name) is not None), None)


def num_queries(query: int | Tensor) -> int:
    """Return the argument of ``get_mask_sizes``: a number of tokens, before 5.4 their positions."""
    return query.shape[0] if isinstance(query, Tensor) else query


def attention_in_use(model: PreTrainedModel) -> str:
    """Return the name of the attention function that a model's layers call."""
    return str(model.config.get_text_config()._attn_implementation)


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """Return whether a model's class declares that its layers use the configured attention function."""
    return bool(model._supports_attention_backend)


def usual_attention(name: str) -> Callable[..., Any]:
    """Return one of transformers' own attention functions."""
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return function


def register_attention(name: str, function: Callable[..., Any], masks_like: str) -> None:
    """Register the attention ``function`` under ``name``, with the masks of an attention that transformers knows."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[masks_like])


@contextmanager
def with_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Use this attention function in a model's layers inside the block."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def recompute_layer(layer: GradientCheckpointingLayer, function: Callable[..., Any]) -> None:
    """Run a layer's forward through ``function``, which keeps only its inputs."""
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = function  # type: ignore[assignment]

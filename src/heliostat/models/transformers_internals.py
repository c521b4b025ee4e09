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
    "has_usual_attention",
    "memory_argument",
    "memory_of",
    "num_queries",
    "recompute_layer",
    "register_attention",
    "takes_attention_functions",
    "usual_attention",
    "with_attention",
]

_USUAL = "sdpa"

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


def has_usual_attention(model: PreTrainedModel) -> bool:
    """Return whether a model's layers call ``usual_attention``, and would call a registered one in its place."""
    return attention_in_use(model) == _USUAL and takes_attention_functions(model)


def usual_attention(module: nn.Module, *states: Tensor | None, **options: Any) -> tuple[Tensor, None]:
    """Attend by torch's fused function, as transformers calls it for a layer."""
    return ALL_ATTENTION_FUNCTIONS[_USUAL](module, *states, **options)  # type: ignore[no-any-return]


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Register the attention ``function`` under ``name``, with the masks of the usual one, which it stands in for."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[_USUAL])


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

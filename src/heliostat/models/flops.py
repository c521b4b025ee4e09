"""Count the FLOPs of a forward, by the usual count for dense transformers.

    FLOP = 2 N_matmul T  +  sum_layers 4 h d_head sum_t min(c_t, window)  +  2 N_head T_logits

``N_matmul`` counts the weights of matrix products (no embeddings, no norms; of routed experts the share in use),
``c_t`` the positions token ``t`` attends to. A multiplication and an addition are two FLOPs. A backward costs
twice its forward.

Left out: elementwise work, norms, rotary tables, convolutions and recurrent scans, together some percent in a
transformer and more in a small recurrent model; and the half of an attention matrix that a causal kernel may skip.

References: Kaplan et al., 2020, arXiv:2001.08361, section 2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKWARD_COST = 2  # of one forward: one product for the inputs' gradient, one for the weights'

# Layer kinds of a Hugging Face configuration that attend, and the key of their window if they have one.
ATTENTION_LAYERS = {
    "full_attention": None,
    "attention": None,
    "hybrid": None,
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}


class HasWeights(Protocol):
    """A model of transformers, with whatever else belongs to it."""

    @property
    def model(self) -> PreTrainedModel: ...


def forward_flops(loaded: HasWeights, num_tokens: float, num_context: float, num_logits: float | None = None) -> float:
    """Count the FLOPs of one forward.

    Args:
        num_tokens: tokens run through the backbone, over all rows.
        num_context: positions a token attends to, averaged over those tokens: ``S`` for a kernel that fills whole
            ``S x S`` matrices, ``(S + 1) / 2`` for the causal part, the cache's length in decoding.
        num_logits: tokens that get logits; default all.

    Returns:
        Operations; a training step costs ``1 + BACKWARD_COST`` times as much.

    **Limits**: equals torch's own count of a Llama's forward, rotary tables aside, at ``num_context = S``.
    """
    model = loaded.model
    projection: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = sum(weight.numel() for weight in projection.parameters() if weight.ndim == 2) if projection else 0
    logits = num_tokens if num_logits is None else num_logits
    attention = sum(4 * width * min(num_context, window) for width, window in attention_layers(model))
    return 2.0 * _matmul_weights(model, projection) * num_tokens + attention * num_tokens + 2.0 * head * logits


def _matmul_weights(model: PreTrainedModel, projection: nn.Module | None) -> float:
    """Count the weights that one token is multiplied with, without the output projection."""
    from heliostat.models.transformers_internals import Conv1D  # GPT-2's name for a linear layer

    config = model.config.get_text_config()
    num_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    share = getattr(config, "num_experts_per_tok", 1) / num_experts if num_experts else 1.0
    total = 0.0
    for module in model.modules():
        if module is projection:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            total += module.weight.numel()
        elif num_experts:  # experts are stacked into one tensor of three dimensions
            stacked = (weight for weight in module.parameters(recurse=False) if weight.ndim == 3)
            total += share * sum(weight.numel() for weight in stacked if weight.shape[0] == num_experts)
    return total


def attention_layers(model: PreTrainedModel) -> list[tuple[int, float]]:
    """Return the summed head width and the window of every attention layer."""
    config: Any = model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", None)
    if not num_heads:
        return []
    default = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    windows = {kind: getattr(config, key, None) if key else None for kind, key in ATTENTION_LAYERS.items()}
    return [
        (_attention_width(config, layer), windows[kind] or float("inf"))
        for layer, kind in enumerate(kinds)
        if kind in ATTENTION_LAYERS
    ]


def _attention_width(config: Any, layer: int) -> int:
    """Return the summed width of a layer's heads; some families have settings per layer."""
    own = getattr(config, "per_layer_config", None)
    settings = own[layer] if own is not None else config
    num_heads: int = settings.num_attention_heads
    head: int = getattr(settings, "head_dim", None) or settings.hidden_size // num_heads
    return num_heads * head

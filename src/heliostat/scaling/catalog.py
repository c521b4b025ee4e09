"""Models and machines by name, for estimates without them: sizes as published, ceilings as on data sheets.

Left out: the share of a ceiling that is reached, which is an assumption (``Hardware``).

References:
    Models: ``config.json`` of Qwen/Qwen2.5-0.5B, -3B, -7B and -32B, Qwen/Qwen3-0.6B and
    -32B, meta-llama/Llama-3.1-8B, meta-llama/Llama-3.1-405B and moonshotai/Kimi-K2-Instruct on the Hugging Face hub.
    Machines: NVIDIA H100 Tensor Core GPU data sheet (SXM column; bfloat16 without sparsity is half of the printed
    number), NVIDIA DGX H100 user guide (eight ConnectX-7 adapters of 400 Gb/s, one for each GPU).
"""

from __future__ import annotations

from typing import Any

from heliostat.scaling.hardware import Hardware
from heliostat.scaling.shapes import ModelShape, shape_of


def _config(family: str, hidden: int, layers: int, heads: tuple[int, int], inner: int, vocab: int) -> dict[str, Any]:
    return {
        **{"model_type": family, "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner},
        **{"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "vocab_size": vocab},
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _config("qwen2", 896, 24, (14, 2), 4864, 151936) | {"tie_word_embeddings": True},
    "qwen2.5-3b": _config("qwen2", 2048, 36, (16, 2), 11008, 151936) | {"tie_word_embeddings": True},
    "qwen2.5-7b": _config("qwen2", 3584, 28, (28, 4), 18944, 152064),
    "qwen2.5-32b": _config("qwen2", 5120, 64, (40, 8), 27648, 152064),
    "qwen3-0.6b": _config("qwen3", 1024, 28, (16, 8), 3072, 151936) | {"head_dim": 128, "tie_word_embeddings": True},
    "qwen3-32b": _config("qwen3", 5120, 64, (64, 8), 25600, 151936) | {"head_dim": 128},
    "llama-3.1-8b": _config("llama", 4096, 32, (32, 8), 14336, 128256),
    "llama-3.1-405b": _config("llama", 16384, 126, (128, 8), 53248, 128256),
    "kimi-k2": _config("kimi_k2", 7168, 61, (64, 64), 18432, 163840)
    | {"n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048}
    | {"first_k_dense_replace": 1, "q_lora_rank": 1536, "kv_lora_rank": 512}
    | {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
}

MODELS: dict[str, ModelShape] = {name: shape_of(config, name) for name, config in CONFIGS.items()}

H100 = Hardware(
    name="H100 SXM, eight to a node, 400 Gb/s each",
    gpus_per_node=8,
    memory_bytes=80e9,
    flops_per_s=989.4e12,
    memory_bytes_per_s=3.35e12,
    node_bytes_per_s=450e9,  # the sheet's 900 GB/s count both directions
    network_bytes_per_s=50e9,
)

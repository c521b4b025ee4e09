"""A small random model of any causal family of transformers, saved with a tokenizer as a user would have it on disk.

Sizes common to most configurations are given to every class that has the key; what one family needs beyond that stands
in ``OWN``. Weights of matrices are scaled up, so that attention matters and greedy texts are no repetition.

Left out: families that are no language model by themselves (``NOT_BUILT``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from heliostat.models.loading.tiny import tiny_tokenizer

VOCAB_SIZE, CONTEXT, WIDTH, HEADS, LAYERS = 520, 128, 32, 4, 2
SCALE = 3.0

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "embedding_size": WIDTH,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "d_inner": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "n_head": HEADS,
    "n_heads": HEADS,
    "attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "max_seq_len": CONTEXT,
    "head_dim": 8,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "window_size": 8,
    "keep_window_size": 8,
    "local_attention": 8,
    "index_topk": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
DECODER = {"is_decoder": True}

OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "bert": DECODER,
    "bert-generation": DECODER,
    "big_bird": DECODER,
    "camembert": DECODER,
    "data2vec-text": DECODER,
    "electra": DECODER,
    "ernie": DECODER,
    "megatron-bert": DECODER,
    "rembert": {**DECODER, "input_embedding_size": WIDTH, "output_embedding_size": WIDTH},
    "roberta": DECODER,
    "roberta-prelayernorm": DECODER,
    "roc_bert": DECODER,
    "roformer": DECODER,
    "xlm-roberta": DECODER,
    "xlm-roberta-xl": DECODER,
    "xmod": {**DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "falcon": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], **MAMBA},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "llama4_text": {"intermediate_size_mlp": 64, "attention_chunk_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8},
    "minicpm3": {"v_head_dim": 16},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "openai-gpt": {},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": WIDTH,
        "attention_window_size": 8,
        "intermediate_size": 96,
    },
    "rwkv": {"attention_hidden_size": WIDTH, "context_length": CONTEXT},
    "xlstm": {"num_heads": 2, "qk_dim_factor": 0.5, "chunk_size": 8, "head_dim": 16},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 2},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": ROPE,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_block_size": 8,
        "index_topk_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": WIDTH},
        "decoder_config": {"hidden_size_global": WIDTH},
    },
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": WIDTH,
        "adapter_out_dim": WIDTH,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "reformer": {
        "attn_layers": ["local", "local"],
        "is_decoder": True,
        "axial_pos_shape": (8, 16),
        "axial_pos_embds_dim": (16, 16),
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "local_attn_chunk_length": 8,
    },
}

# Families of transformers' mapping that are no language model by themselves, and why.
NOT_BUILT: dict[str, str] = {
    "gemma3n": "its tower for images needs the package timm",
    "gemma4_assistant": "it drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "it drafts for another model, whose keys and values it reads",
    "musicgen": "its class for causal modelling predicts codes of sound, and takes its decoder's configuration alone",
    "musicgen_melody": "its class for causal modelling predicts codes of sound, and takes its decoder's configuration "
    "alone",
}


class NotBuilt(ValueError):
    """No model of a family can be made in small; the message says why."""


def config_of(family: str) -> Any:
    """A family's configuration in small: common sizes where it has such a key, parts likewise, and its own."""
    if family in NOT_BUILT:
        raise NotBuilt(NOT_BUILT[family])
    return small_config(CONFIG_MAPPING[family])


def small_config(kind: Any, own: Mapping[str, Any] | None = None) -> Any:
    """A configuration of this class, its parts (text, images, sound) in small as well.

    Args:
        own: what goes before ``OWN``; a part's settings in a dictionary, with its ``model_type`` where it is another.
    """
    own = OWN.get(kind.model_type, {}) | dict(own or {})
    usual = kind()
    known = {*inspect.signature(kind.__init__).parameters, *vars(usual), *kind.attribute_map}
    common = COMMON
    if "qk_rope_head_dim" in known:  # latent attention: a head's width comes from its parts, and heads are not shared
        common = {key: value for key, value in COMMON.items() if key != "head_dim"} | {"num_key_value_heads": HEADS}
    settings = {key: value for key, value in common.items() if key in known} | own
    for name in kind.sub_configs:
        part = dict(own.get(name, {}))
        named, default = part.pop("model_type", None), getattr(usual, name, None)
        if named or default is not None:
            settings[name] = small_config(CONFIG_MAPPING[named] if named else type(default), part)
    return kind(**settings)


def small_model(family: str, seed: int = 0) -> Any:
    """A random model of the family, its matrices scaled up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(family)).float()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(SCALE)
    return model.eval()


def write_small(family: str, folder: Path) -> Path:
    """The model and a tokenizer without a template, written by transformers itself."""
    small_model(family).save_pretrained(folder)
    tokenizer = tiny_tokenizer(CONTEXT)
    tokenizer.sep_token = None
    tokenizer.save_pretrained(folder)
    return folder

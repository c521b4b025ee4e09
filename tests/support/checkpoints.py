"""Checkpoints of many architectures, tiny and random, written to disk as a user would have them."""

from pathlib import Path

import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.loading.tiny import CHAT_TEMPLATE, tiny_tokenizer

VOCAB_SIZE = 520  # a few rows more than the tokenizer has ids, as real checkpoints do
CONTEXT_LENGTH = 64
TRANSFORMER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Architecture -> (model type, settings, the cache it keeps).
FAMILIES: dict[str, tuple[str, dict, str]] = {
    "llama": ("llama", TRANSFORMER, "kv"),
    "qwen2": ("qwen2", TRANSFORMER, "kv"),
    "qwen3": ("qwen3", TRANSFORMER | {"head_dim": 16}, "kv"),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT_LENGTH},
        "kv",
    ),
    "phi3": ("phi3", TRANSFORMER, "kv"),
    "granite": ("granite", TRANSFORMER | {"logits_scaling": 4.0}, "kv"),
    "cohere": ("cohere", TRANSFORMER | {"logit_scale": 0.0625}, "kv"),
    "gemma2": ("gemma2", TRANSFORMER | {"head_dim": 8, "sliding_window": 8}, "other"),
    "mistral": ("mistral", TRANSFORMER | {"sliding_window": 8}, "other"),
    "qwen3_moe": (
        "qwen3_moe",
        TRANSFORMER | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "kv",
    ),
    "mamba": ("mamba", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}, "other"),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 32,
            "attention_window_size": 16,
        },
        "other",
    ),
    "falcon_h1": (
        "falcon_h1",
        TRANSFORMER
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
        },
        "other",
    ),
}


def chat_tokenizer():
    """A chat model's tokenizer: a template, no separator, and a turn marker apart from the end-of-sequence token."""
    tokenizer = tiny_tokenizer(CONTEXT_LENGTH)
    tokenizer.sep_token = None
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def plain_tokenizer():
    """A base model's tokenizer, like GPT-2's: no template, no padding, nothing put before or behind a text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = tiny_tokenizer(CONTEXT_LENGTH).backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>")


def write_checkpoint(folder: Path, family: str, tokenizer=None, **overrides: object) -> Path:
    """A random model of a family with a tokenizer, saved by transformers itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings | overrides))
    model.save_pretrained(folder)
    (tokenizer or chat_tokenizer()).save_pretrained(folder)
    return folder


def load_float32(folder: Path) -> LoadedModel:
    loaded = load_model(ModelSection(path=str(folder), dtype="float32"), seed=0, device=torch.device("cpu"))
    loaded.model.eval()
    return loaded

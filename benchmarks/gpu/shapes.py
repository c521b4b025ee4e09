"""Models of Qwen3-0.6B's shape with random weights, and a small one of the same kind, with the tiny model's tokenizer.

Left out: trained weights, which the measured times and memory do not depend on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from heliostat.models import LoadedModel
from heliostat.models.loaded_model import assemble
from heliostat.models.loading.tiny import tiny_tokenizer

CONTEXT = 4096


@dataclass(frozen=True)
class Size:
    """Sizes of a model, and of the batch that it is timed on.

    Attributes:
        num_prompts, group_size, prompt_tokens, new_tokens: of a step; every completion has ``new_tokens`` tokens.
        pass_rows: rows of a decoding pass that is timed alone.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    num_prompts: int
    group_size: int
    prompt_tokens: int
    new_tokens: int
    pass_rows: int


SIZES = {
    "qwen3-0.6b": Size(28, 1024, 16, 8, 128, 3072, 151_936, 8, 8, 256, 128, 64),
    "tiny": Size(2, 64, 4, 2, 32, 192, 1024, 2, 3, 12, 5, 3),
}


def build(name: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Build the model on a device, with the same weights at every call there."""
    size = SIZES[name]
    tokenizer = tiny_tokenizer(CONTEXT)
    config = Qwen3Config(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():  # not buffers: rotary frequencies stay float32, as in a model that is loaded
        parameter.data = parameter.data.to(dtype)
    module: nn.Module = model
    module.to(device)
    module.eval()
    return assemble(model, tokenizer, f"{name} with random weights")

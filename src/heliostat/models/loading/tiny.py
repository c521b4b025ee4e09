"""The built-in tiny model: a Llama of one to three million parameters with random weights and its own tokenizer.

It exists so that a full run takes minutes on any machine, offline. It needs a warm start.
Left out: any pretrained weights, and any architecture of our own (plain transformers loads a save).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from heliostat.config import ModelSection, build_checked
from heliostat.models.loaded_model import TINY, LoadedModel, assemble

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_PATH = Path(__file__).with_name("tiny_tokenizer.json")  # made by build_tokenizer.py

PAD, BOS, EOS, SEP = "<|pad|>", "<|bos|>", "<|eos|>", "<|sep|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SEP, IM_START, IM_END)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '" + IM_START + "' + message['role'] + '\\n' + message['content'] + '" + IM_END + "\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + IM_START + "assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """``[model.settings]`` of the tiny model; the defaults give 1.35M parameters.

    Raises:
        ValueError: a size is not positive, or the heads do not divide the width into even rotary dimensions.
    """

    hidden_size: int = 160
    intermediate_size: int = 448
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    context_length: int = 512
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} = {value} must be positive")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be an even multiple of num_heads = {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}")


def tiny_tokenizer(context_length: int) -> PreTrainedTokenizerBase:
    """Load the committed tokenizer; it adds ``sep`` at the end of a plain prompt itself, so this survives saving."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(TOKENIZER_PATH),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        sep_token=SEP,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def load_tiny(section: ModelSection, seed: int, device: torch.device) -> LoadedModel:
    """Build the model with random weights from ``seed``, without changing the global random state.

    float32 unless the recipe says otherwise: its matrices are too small to gain from bfloat16, and so the same seed
    starts from the same weights on every machine.

    Raises:
        ConfigError: ``[model.settings]`` holds an unknown key or an impossible shape.
    """
    shape = build_checked(TinyShape, section.settings, "model.settings")
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(shape.context_length)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.context_length,
        initializer_range=shape.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    dtype = torch.bfloat16 if section.dtype == "bfloat16" else torch.float32
    for parameter in model.parameters():  # not buffers: rotary frequencies stay float32, as in a model that is loaded
        parameter.data = parameter.data.to(dtype)
    cast(nn.Module, model).to(device=device)
    return assemble(model, tokenizer, TINY)

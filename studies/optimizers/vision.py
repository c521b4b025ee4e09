"""Vision: scikit-learn's digits for three kinds of network, MNIST-1D, and noisy curves drawn in its manner.

Left out: optimizers, and the loop (``run``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tasks import Task, split
from torch import Tensor, nn


def mlp(num_inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    )


def cnn() -> nn.Module:
    """Two convolutions and two linear layers; 7 thousand weights, 5 thousand of them in the linear layers."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class ViTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # written out: differentiable twice
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of two layers on 16 patches of 2 x 2."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(ViTBlock(width), ViTBlock(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(1, (4, 2, 4, 2)).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patch(patches) + self.position)).mean(1))


def conv1d() -> nn.Module:
    """Three convolutions of stride two over 40 points, and a linear layer."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 24, 5, 2, 2), nn.ReLU(), nn.Conv1d(24, 24, 3, 2, 1), nn.ReLU()),
        *(nn.Conv1d(24, 24, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _digits(name: str, make: Callable[[], nn.Module], num_steps: int = 200) -> Task:
    from sklearn.datasets import load_digits

    found = load_digits()
    train, test = split(found.data / 16.0 - 0.3, found.target, 500)
    return Task(name, train, test, make, num_steps, batch_size=128)


def digits() -> Task:
    """scikit-learn's 1,797 images of 8 x 8."""
    return _digits("digits", lambda: mlp(64, 64))


def digits_cnn() -> Task:
    return _digits("digits-cnn", cnn)


def digits_vit() -> Task:
    return _digits("digits-vit", ViT, num_steps=120)


def mnist1d() -> Task:
    """MNIST-1D as its own package generates it, with its settings: 4,000 curves of 40 points, 1,000 held out."""
    from mnist1d.data import make_dataset

    found = make_dataset()
    x, y, x_test, y_test = (torch.tensor(found[key]) for key in ("x", "y", "x_test", "y_test"))
    return Task("mnist1d", (x.float(), y), (x_test.float(), y_test), lambda: mlp(40, 100), 300, batch_size=128)


def mnist1d_cnn() -> Task:
    task = mnist1d()
    return Task("mnist1d-cnn", task.train, task.test, conv1d, 300, batch_size=128)


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

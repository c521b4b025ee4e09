"""What a problem of the study is: fresh models and batches from a seed, the loss of a batch, held-out results.

Left out: the problems themselves (``vision``, ``language``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        train, test: (inputs, targets), one sample per row.
        make: a fresh model.
        num_steps, batch_size: the budget of every run.
    """

    name: str
    train: Samples
    test: Samples
    make: Callable[[], nn.Module]
    num_steps: int
    batch_size: int

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def batch(self, seed: int, step: int) -> Samples:
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


def split(inputs: np.ndarray, labels: np.ndarray, num_test: int) -> tuple[Samples, Samples]:
    order = np.random.default_rng(0).permutation(len(inputs))
    x, y = torch.tensor(inputs[order], dtype=torch.float32), torch.tensor(labels[order], dtype=torch.long)
    return (x[num_test:], y[num_test:]), (x[:num_test], y[:num_test])

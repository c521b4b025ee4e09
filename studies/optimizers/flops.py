"""FLOPs of a training step of the large transformer with each optimizer: counted on one of its layers, times twelve.

    python studies/optimizers/flops.py    # writes flops.json

Matrix products are counted by torch as they happen (2 per multiply-add, so causal attention counts whole), forward and
backward on the batch of the study. Decompositions of an n x n matrix are counted as n^3 times: eigenvectors 9, QR 10/3,
singular vectors 21, LU 2/3 (Golub & Van Loan). An optimizer's count is the mean over steps 11 to 20, two of which renew
or one, as it happens once in ten. Elementwise work is left out: it is linear in the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from contenders import train_step
from language import LENGTH, CharacterModel
from torch.utils.flop_counter import FlopCounterMode
from transformer import BATCH_SIZE, COMPARISON

RESULTS = Path(__file__).with_name("flops.json")
NUM_LAYERS, VOCAB = 12, 67


def per_matrix(factor: float) -> Any:
    """The count of a decomposition from its first argument's shape."""

    def count(shape: torch.Size, *_: Any, **__: Any) -> int:
        return int(factor * shape[-2] * shape[-1] * min(shape[-2:]))

    return count


DECOMPOSITIONS = {
    torch.ops.aten._linalg_eigh: per_matrix(9),
    torch.ops.aten.linalg_qr: per_matrix(10 / 3),
    torch.ops.aten._linalg_svd: per_matrix(21),
    torch.ops.aten._linalg_solve_ex: per_matrix(2 / 3),
}


def counted(call: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=DECOMPOSITIONS) as counter:
        call()
    return int(counter.get_total_flops())


def model_and_batch(num_layers: int) -> tuple[CharacterModel, torch.Tensor]:
    torch.manual_seed(0)
    model = CharacterModel(VOCAB, width=320, hidden=640, num_layers=num_layers, num_heads=8, fused=False)
    return model, torch.randint(VOCAB, (BATCH_SIZE, LENGTH))


def of_training_step(num_layers: int) -> int:
    """Forward and backward."""
    model, tokens = model_and_batch(num_layers)
    return counted(lambda: torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward())


def of_optimizer(name: str) -> float:
    """A step of the optimizer on one layer, the renewal shared out over ten."""
    model, tokens = model_and_batch(1)
    optimizer = COMPARISON.arms[name][0](model, 1e-5)
    counts: list[int] = []
    plain = optimizer.step

    def step(*arguments: Any) -> None:
        counts.append(counted(lambda: plain(*arguments)))

    with patch.object(optimizer, "step", step):
        for _ in range(20):
            train_step(optimizer, model, tokens, tokens)
    return sum(counts[10:]) / 10


def main() -> None:
    torch.set_num_threads(1)
    one, two = of_training_step(1), of_training_step(2)
    found = {"model": one + (NUM_LAYERS - 1) * (two - one)}
    found |= {name: round(NUM_LAYERS * of_optimizer(name)) for name in COMPARISON.arms}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()

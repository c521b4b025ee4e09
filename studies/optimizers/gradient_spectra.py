"""Spectra of the gradient matrices of post-training runs: effective rank, share of the top direction, and noise.

    OMP_NUM_THREADS=1 python studies/optimizers/gradient_spectra.py --work /tmp/sizes    # as posttraining_sizes had it
    python studies/optimizers/gradient_spectra.py --table

The runs are those of ``posttraining_sizes`` (0.1 million weights, seed 1). At every update the squared singular values
of each trained matrix's gradient are normalised to a distribution; its exponentiated entropy is the effective rank. The
cosine of one update's whole gradient with the last one's says how much of a gradient outlives its batch.

Left out: embeddings with their tied head, and any other size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from posttraining_sizes import Run, arm_recipe, sized_recipe
from torch import Tensor

from heliostat import sft
from heliostat.train import run_recipe
from heliostat.train.update.safe_step import SafeStep

STORED = Path(__file__).parent / "gradient-spectra.jsonl"
SIZE, SEED, WIDEST = "0.1M", 1, 500
RUNS = [("whole", "adamw", 3e-4), ("lora", "adamw", 3e-3), ("whole", "sgd", 3e-2)]
QUARTERS = 4


def spectrum(gradient: Tensor) -> tuple[float, float]:
    """Return the effective rank as a share of the full rank, and the top direction's share of the squared norm."""
    squares = torch.linalg.svdvals(gradient.float()).double().square()
    shares = squares / squares.sum()
    rank = float(torch.special.entr(shares).sum().exp())
    return rank / min(gradient.shape), float(shares[0])


def measured(parameters: list[Tensor], before: Tensor | None) -> tuple[dict[str, float], Tensor]:
    """Return the medians over matrices at one update, and its whole gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
    inner = [gradient for gradient in gradients if gradient.ndim == 2 and max(gradient.shape) < WIDEST]
    ranks, tops = zip(*(spectrum(gradient) for gradient in inner if gradient.any()), strict=True)
    row = {"rank": statistics.median(ranks), "top": statistics.median(tops)}
    if before is not None:
        row["cosine"] = float(torch.nn.functional.cosine_similarity(whole, before, dim=0))
    return row, whole


def watched(work: Path, weights: str, arm: str, lr: float) -> dict[str, Any]:
    """Run once more, and measure every update."""
    rows: list[dict[str, float]] = []
    last: list[Tensor | None] = [None]
    apply = SafeStep.apply

    def watching(self: SafeStep, *args: Any) -> float | None:
        if any(parameter.grad is not None for parameter in self.parameters):
            row, last[0] = measured(self.parameters, last[0])
            rows.append(row)
        return apply(self, *args)

    recipe = sized_recipe(work, SIZE)
    start = sft(recipe, run_dir=work / "start").folder / "model"
    folder = work / "watched"
    shutil.rmtree(folder, ignore_errors=True)
    with patch.object(SafeStep, "apply", watching):
        run_recipe(arm_recipe(recipe, start, Run(SIZE, weights, arm, lr, SEED)), folder)
    return {"weights": weights, "arm": arm, "lr": lr, "updates": rows}


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STORED.read_text().splitlines()] if STORED.exists() else []


def table() -> list[str]:
    """Medians over the updates of each quarter of a run."""
    lines = ["| weights | optimizer | updates | effective rank / full | top direction | cosine with the last update |"]
    lines.append("|---|---|---|--:|--:|--:|")
    for run in stored():
        length = len(run["updates"]) // QUARTERS
        for quarter in range(QUARTERS):
            part = run["updates"][quarter * length : (quarter + 1) * length]
            keys = ("rank", "top", "cosine")
            values = [statistics.median(row[key] for row in part if key in row) for key in keys]
            said = f"{quarter * length + 1} to {(quarter + 1) * length}"
            cells = [run["weights"], run["arm"], said, *(f"{value:.2f}" for value in values)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of posttraining_sizes")
    parser.add_argument("--table", action="store_true", help="print the table of the stored runs only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["weights"], row["arm"]) for row in stored()}
    for weights, arm, lr in RUNS:
        if arguments.work is None or arguments.table or (weights, arm) in done:
            continue
        row = watched(arguments.work / SIZE, weights, arm, lr)
        with STORED.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print("\n".join(table()))


if __name__ == "__main__":
    main()

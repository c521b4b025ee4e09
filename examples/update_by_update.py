"""A training loop of one's own on the research API: policy mirror descent, update by update.

    python examples/update_by_update.py --steps 30

It trains the shipped demo's model on one-digit arithmetic and prints, after each update, the reward, the multiplier
lambda of the mirror step, and the KL divergence from the policy that sampled.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import heliostat
from heliostat.research import open_experiment
from heliostat.types import Group

SETTINGS = {"run.num_threads": 1, "train.updates_per_step": 2, "optimizer.lr": 5e-4, "task.num_heldout": 50}


def kl(before: Sequence[Sequence[torch.Tensor]], after: Sequence[Sequence[torch.Tensor]]) -> float:
    """Estimate KL(old || new) per completion, from completions that the old policy sampled."""
    gaps = [float((old - new).sum()) for a, b in zip(before, after, strict=True) for old, new in zip(a, b, strict=True)]
    return sum(gaps) / len(gaps)


def main(steps: int, warm_steps: int, num_problems: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        warm = {**SETTINGS, "warm_start.num_steps": warm_steps, "train.try_export": False}
        start = heliostat.sft("demo", overrides=warm, run_dir=Path(folder) / "warm").folder / "model"
        with open_experiment("demo", {**SETTINGS, "model.path": str(start), "model.settings": {}}) as experiment:
            print(f"held-out pass@1 before: {experiment.evaluate(num_samples=1).pass_at_1:.1%}")
            for index in range(steps):
                groups: list[Group] = experiment.sample(experiment.problems(index, num_problems), seed=index)
                before = experiment.score(groups)
                step = experiment.step(groups, seed=index)
                mirror = experiment.mirror_metrics(step)
                moved = kl(before, experiment.score(groups))
                reward, multiplier = step.metrics["reward/mean"], mirror["policy/lambda_hat"]
                print(f"step {index + 1:3d}  reward {reward:.2f}  lambda {multiplier:+.4f}  KL {moved:.4f}")
            print(f"held-out pass@1 after:  {experiment.evaluate(num_samples=1).pass_at_1:.1%}")
            print(f"{experiment.ledger.spent:.3g} FLOPs of sampling and training")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-steps", type=int, default=150)
    parser.add_argument("--problems", type=int, default=16)
    args = parser.parse_args()
    main(args.steps, args.warm_steps, args.problems)

"""The mechanism: how close is each direction to the exact damped natural gradient of the same batch?

    python studies/rank1/probe.py

A SMAC policy on CartPole and one on Pendulum is stopped three times. On one rollout each: the cosine to
``(damping I + S'S/B)^-1 g`` of the plain gradient and of ``Rank1`` with m scores (mean over draws), by damping;
the distribution of ``|u|^2``; and how many directions carry the Fisher matrix. Rows go to probe.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env

from heliostat.control import SMAC, SampleSpace
from heliostat.control.actor import Actor, Transitions

HERE = Path(__file__).parent
NUM_SCORES = (1, 4, 16, 64, 256)
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_DRAWS = 20


class Batch:
    """Directions of one batch as coefficients over its scores: ``d = (g - S'w) / damping``, all products from SS'."""

    def __init__(self, scores: torch.Tensor, advantages: torch.Tensor) -> None:
        self.size = len(scores)
        self.products = scores @ scores.T
        self.along = self.products @ advantages / self.size  # S g
        self.square = float(advantages @ self.along) / self.size  # g'g

    def weights(self, index: Any, damping: float) -> torch.Tensor:
        """``w`` of the natural gradient whose Fisher matrix has the scores ``index``; zero elsewhere."""
        chosen = torch.as_tensor(index)
        system = self.products[chosen][:, chosen] + damping * len(chosen) * torch.eye(len(chosen), dtype=torch.float64)
        full = torch.zeros(self.size, dtype=torch.float64)
        full[chosen] = torch.linalg.solve(system, self.along[chosen])
        return full

    def inner(self, w: torch.Tensor, v: torch.Tensor) -> float:
        return self.square - float((w + v) @ self.along) + float(w @ (self.products @ v))

    def cosine(self, w: torch.Tensor, v: torch.Tensor) -> float:
        return self.inner(w, v) / (self.inner(w, w) * self.inner(v, v)) ** 0.5


def measured(actor: Actor, rows: Transitions, seed: int = 0) -> list[dict[str, Any]]:
    """One row per damping; every direction from the same scores, in float64."""
    scores = torch.cat([part.flatten(1) for part in actor.scores(rows).values()], 1).double()
    batch, size = Batch(scores, rows.advantages.double()), len(scores)
    values = torch.linalg.eigvalsh(batch.products / size).clamp(min=0)
    squares = batch.products.diagonal()
    draws, nothing = np.random.default_rng(seed), torch.zeros(size, dtype=torch.float64)
    found = []
    for damping in DAMPINGS:
        exact = batch.weights(np.arange(size), damping)
        row: dict[str, Any] = {"damping": damping, "gradient": batch.cosine(nothing, exact)}
        for m in NUM_SCORES:
            draw = [batch.weights(draws.choice(size, m, replace=False), damping) for _ in range(NUM_DRAWS)]
            row[f"m={m}"] = float(np.mean([batch.cosine(w, exact) for w in draw]))
            row[f"removed, m={m}"] = float(np.mean([float(w @ batch.along) / batch.square for w in draw]))
        found.append(row)
    shared = {
        "rows": size,
        "parameters": scores.shape[1],
        "trace": float(values.sum()),
        "top_share": float(values[-1] / values.sum()),
        "effective_rank": float(values.sum() ** 2 / (values**2).sum()),
        "score_square_median": float(squares.median()),
        "score_square_p99": float(squares.quantile(0.99)),
    }
    return [shared | row for row in found]


def main() -> None:
    torch.set_num_threads(1)
    with (HERE / "probe.jsonl").open("w") as file:
        for env, gamma in (("CartPole-v1", 0.98), ("Pendulum-v1", 0.9)):
            direction = SampleSpace(max_kl=0.01)
            model = SMAC(
                "MlpPolicy", make_vec_env(env, 8, seed=0), 1e3, n_steps=64, gamma=gamma, direction=direction, seed=0
            )
            for at in (0, 5_000, 15_000):
                more = max(at - model.num_timesteps, 1)
                # Stable-Baselines3 takes None for no log, and declares int.
                model.learn(more, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
                for row in measured(model.actor, model.transitions()[0]):
                    line = {"env": env, "step": model.num_timesteps, **row}
                    file.write(
                        json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}) + "\n"
                    )
                print(env, at, "done", flush=True)


if __name__ == "__main__":
    main()

"""The mechanism: how close is each direction to the exact damped natural gradient of the same batch?

    python studies/rank1/probe.py

A SMAC policy on CartPole and one on Pendulum is stopped three times. On one rollout each: the cosine to
``(damping I + S'S/B)^-1 g`` of the plain gradient and of ``Rank1`` with m scores (mean over draws), for several dampings;
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
from heliostat.control.actor import Actor, Rows
from heliostat.control.sample_space import gram

HERE = Path(__file__).parent
NUM_SCORES = (1, 4, 16, 64, 256)
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_DRAWS = 20


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def measured(actor: Actor, rows: Rows, seed: int = 0) -> list[dict[str, Any]]:
    """One row per damping; every direction from the same scores, in float64."""
    scores = torch.cat([part.flatten(1) for part in actor.scores(rows).values()], 1).double()
    size = len(scores)
    gradient = scores.T @ rows.advantages.double() / size
    products = gram({scores: scores}) / size
    values = torch.linalg.eigvalsh(products).clamp(min=0)
    squares = scores.pow(2).sum(1)
    draws = np.random.default_rng(seed)

    def natural(index: Any, damping: float) -> torch.Tensor:
        chosen = scores[index]
        system = chosen @ chosen.T + damping * len(chosen) * torch.eye(len(chosen), dtype=torch.float64)
        return (gradient - chosen.T @ torch.linalg.solve(system, chosen @ gradient)) / damping

    found = []
    for damping in DAMPINGS:
        exact = natural(np.arange(size), damping)
        row: dict[str, Any] = {"damping": damping, "gradient": cosine(gradient, exact)}
        for m in NUM_SCORES:
            draw = [natural(draws.choice(size, m, replace=False), damping) for _ in range(NUM_DRAWS)]
            row[f"m={m}"] = float(np.mean([cosine(d, exact) for d in draw]))
            row[f"removed, m={m}"] = float(np.mean([1 - damping * float(d @ gradient / gradient.norm() ** 2) for d in draw]))
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
            for at in (0, 10_000, 30_000):
                more = max(at - model.num_timesteps, 1)
                model.learn(more, reset_num_timesteps=False, log_interval=None)
                for row in measured(model.actor, model._rows()):
                    line = {"env": env, "step": model.num_timesteps, **row}
                    file.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
                print(env, at, "done", flush=True)


if __name__ == "__main__":
    main()

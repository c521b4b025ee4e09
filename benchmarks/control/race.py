"""What SMAC costs: its update beside plain policy gradient's and TRPO's, its whole loop beside A2C's, its arithmetic
beside Adam's.

    python benchmarks/control/race.py --out benchmarks/control/results/race.json

Ratios of CPU seconds on one thread; contenders take turns within each round, and a ratio is the median over rounds of
that round's ratio, so that a busy machine slows both sides of it.

Left out: wall-clock time, and what the updates achieve (studies/rank1).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import TRPO
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env

from heliostat.control import SMAC, Gradient, Rank1
from heliostat.control.directions import Direction
from heliostat.optim import Rank1NaturalGradient

ENV = "CartPole-v1"


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def interleaved(
    sides: dict[str, Callable[[], object]], num_rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """CPU seconds of every side in every round, after an untimed ``before``; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(num_rounds + 1):
        for name in sides if number % 2 else reversed(sides):
            before()
            took = cpu_seconds(sides[name])
            if number:
                seconds[name].append(took)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def filled(model):
    """A model with a rollout to learn from; ``train()`` may be called again and again."""
    train, model.train = model.train, lambda: None
    model.learn(model.n_steps * model.n_envs)
    model.train = train
    return model


def updates(num_rounds: int) -> dict[str, float]:
    """One update on 2048 steps, the same critic work on every side: ten passes in minibatches of 128."""
    shared: dict[str, Any] = {"n_steps": 256, "batch_size": 128, "n_critic_updates": 10, "seed": 0}
    steps: dict[str, Direction | str] = {
        "SMAC": Rank1(num_scores=1),
        "SMAC, 16 scores": Rank1(num_scores=16, damping=0.1),
        "exact": "sample-space",
        "policy gradient": Gradient(),
    }
    models: dict[str, Any] = {
        name: filled(SMAC("MlpPolicy", make_vec_env(ENV, 8, seed=0), 0.01, direction=direction, **shared))
        for name, direction in steps.items()
    }
    models["TRPO"] = filled(TRPO("MlpPolicy", make_vec_env(ENV, 8, seed=0), **shared))
    start = {name: copy.deepcopy(model.policy.state_dict()) for name, model in models.items()}

    def restart() -> None:  # TRPO's line search is longer on a batch that it has learned from already
        for name, model in models.items():
            model.policy.load_state_dict(start[name])

    whole = interleaved({name: model.train for name, model in models.items()}, num_rounds, restart)
    for model in models.values():
        model.n_critic_updates = 0
    actor_only = {name: model.train for name, model in models.items() if name != "TRPO"}
    models["TRPO"].n_critic_updates = 1  # it averages over its critic's losses and needs one
    models["TRPO"].batch_size = 2048
    actor = interleaved(actor_only | {"TRPO": models["TRPO"].train}, num_rounds, restart)
    critic = {
        name: [all_of_it - alone for all_of_it, alone in zip(whole[name], actor[name], strict=True)]
        for name in ("SMAC", "TRPO")
    }
    return {
        "critic's passes, SMAC / TRPO": ratio(critic, "SMAC", "TRPO"),
        "critic's share of SMAC's update": statistics.median(critic["SMAC"]) / statistics.median(whole["SMAC"]),
        "critic's share of TRPO's update": statistics.median(critic["TRPO"]) / statistics.median(whole["TRPO"]),
        "update, SMAC / policy gradient": ratio(whole, "SMAC", "policy gradient"),
        "update, SMAC / TRPO": ratio(whole, "SMAC", "TRPO"),
        "update, SMAC with 16 scores / policy gradient": ratio(whole, "SMAC, 16 scores", "policy gradient"),
        "update, exact / policy gradient": ratio(whole, "exact", "policy gradient"),
        "actor's step alone, SMAC / policy gradient": ratio(actor, "SMAC", "policy gradient"),
        "actor's step alone, SMAC / TRPO": ratio(actor, "SMAC", "TRPO"),
    }


def loops(num_rounds: int, num_steps: int = 2000) -> dict[str, float]:
    """Environment steps per CPU second in A2C's settings: 8 environments, 5 steps, one critic step."""
    a2c = A2C("MlpPolicy", make_vec_env(ENV, 8, seed=0), seed=0)
    same: dict[str, Any] = {"n_steps": 5, "batch_size": 40, "n_critic_updates": 1, "gae_lambda": 1.0}
    smac = SMAC("MlpPolicy", make_vec_env(ENV, 8, seed=0), 0.01, seed=0, direction=Rank1(num_scores=1), **same)
    seconds = interleaved({"A2C": lambda: a2c.learn(num_steps), "SMAC": lambda: smac.learn(num_steps)}, num_rounds)
    return {"environment steps per CPU second, SMAC / A2C": ratio(seconds, "A2C", "SMAC")}


LARGE: list[tuple[int, ...]] = [(1024, 1024)] * 4
ACTOR: list[tuple[int, ...]] = [(64, 4), (64,), (64, 64), (64,), (2, 64), (2,)]  # of MlpPolicy on CartPole


def arithmetic(num_rounds: int, shapes: list[tuple[int, ...]], num_steps: int) -> float:
    """Steps on given gradients and one given score, against fused Adam's."""
    torch.manual_seed(0)
    sides: dict[str, Callable[[], object]] = {}
    for name in ("rank-1", "Adam (fused)"):
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        scores: dict[torch.Tensor, torch.Tensor] = {weight: torch.randn(1, *weight.shape) for weight in weights}
        if name == "rank-1":
            sides[name] = repeated(partial(Rank1NaturalGradient(weights, lr=1e-3).step, scores=scores), num_steps)
        else:
            sides[name] = repeated(torch.optim.Adam(weights, lr=1e-3, fused=True).step, num_steps)
    return ratio(interleaved(sides, num_rounds), "rank-1", "Adam (fused)")


def repeated(step: Callable[[], object], num_steps: int) -> Callable[[], object]:
    """Return a call that makes ``num_steps`` steps."""
    return lambda: [step() for _ in range(num_steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds; one more is not counted")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "arithmetic, rank-1 / fused Adam, 4.2 million weights": arithmetic(arguments.rounds, LARGE, 10),
        "arithmetic, rank-1 / fused Adam, CartPole's actor": arithmetic(arguments.rounds, ACTOR, 500),
    }
    found |= updates(arguments.rounds) | loops(arguments.rounds)
    for name, value in found.items():
        print(f"{name:<60} {value:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"rounds": arguments.rounds, "ratios": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

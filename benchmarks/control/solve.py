"""What a first user does: train on CartPole with a given direction, then evaluate the deterministic policy.

python benchmarks/control/solve.py                                                      the defaults
python benchmarks/control/solve.py --seeds 3 4 5 --set num_scores=1 damping=1.0         the paper's one score
python benchmarks/control/solve.py --set direction=sgd learning_rate=3.0               the plain policy gradient

Prints, for every seed, the mean return over 20 episodes, and the CPU and wall seconds of ``learn`` on one thread.
CartPole-v1 counts as solved from 475.
"""

from __future__ import annotations

import argparse
import time

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from heliostat.cli.control import read_settings
from heliostat.control import SMAC
from heliostat.control.algorithms import arguments_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = read_settings(arguments.set)
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        model = SMAC("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", **arguments_of("smac", settings))
        wall, cpu = time.perf_counter(), time.process_time()
        model.learn(arguments.steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        mean, deviation = evaluate_policy(model, make_vec_env("CartPole-v1", 5, seed=10_000 + seed), 20, warn=False)
        print(f"seed {seed}: {mean:.1f} +- {deviation:.1f}, {cpu:.1f} CPU s, {wall:.1f} s", flush=True)


if __name__ == "__main__":
    main()

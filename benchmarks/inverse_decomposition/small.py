"""Small problems against GGLasso, one CPU thread: what a call costs when the arithmetic is next to nothing.

Two covariances per size: eigenvalues over three orders of magnitude, and 200 samples of white noise, on which ADMM
converges in a few steps. Medians of CPU seconds over repeats and the middle one of three seeds. Run in the environment
that ``race.py`` describes:

    OMP_NUM_THREADS=1 peers/bin/python benchmarks/inverse_decomposition/small.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from contenders import CONTENDERS
from problems import Problem, kkt_residual, random_problem

SIZES, SEEDS, REPEATS = (4, 8, 16, 30), 3, 30
NAMES = ("heliostat", "GGLasso 1e-7", "GGLasso 1e-12")


def white_noise(n: int, seed: int) -> Problem:
    """The sample covariance of independent variables, on the pattern of ``random_problem``."""
    samples = np.random.default_rng([n, seed]).normal(size=(n, 200))
    return Problem(np.cov(samples), random_problem(n, seed).mask)


def cell(name: str, problems: list[Problem]) -> str:
    """Milliseconds and residual."""
    measured = []
    for problem in problems:
        seconds = []
        for _ in range(REPEATS):
            start = time.process_time()
            precision = CONTENDERS[name](problem)
            seconds.append(time.process_time() - start)
        measured.append((statistics.median(seconds), kkt_residual(problem, precision)))
    middle = sorted(measured)[SEEDS // 2]
    return f"{middle[0] * 1e3:.1f} ms, {middle[1]:.0e}"


def main() -> None:
    import torch

    torch.set_num_threads(1)
    print("| covariance, n | " + " | ".join(NAMES) + " |\n|---" + "|--:" * len(NAMES) + "|")
    for kind, make in (("condition 1e3", random_problem), ("white noise", white_noise)):
        for n in SIZES:
            problems = [make(n, seed) for seed in range(SEEDS)]
            for name in NAMES:
                CONTENDERS[name](problems[0])  # compiles kernels and loads libraries
            print(f"| {kind}, {n} | " + " | ".join(cell(name, problems) for name in NAMES) + " |", flush=True)


if __name__ == "__main__":
    main()

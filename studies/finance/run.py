"""What information is worth to an exponential-utility trader, over the Hurst parameter, checked by Monte Carlo.

    OMP_NUM_THREADS=1 python studies/finance/run.py            # everything; about a CPU minute
    python studies/finance/run.py --plot                       # the plot again, from results.json

Settings are frozen below; results.json and certainty_equivalent.svg are what the README reports.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from market import (
    FloatArray,
    Information,
    best_strategy,
    certainty_equivalent,
    information_sets,
    market_covariance,
)

HERE = Path(__file__).parent
HURST = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99]
ALPHA, NUM_STEPS, DELAY = 5.0, 50, 2
# Monte Carlo: small enough a market that exp(-wealth) has a variance, which is checked.
CHECKED_HURST, CHECKED_ALPHA, CHECKED_STEPS = [0.6, 0.75, 0.9], 1.0, 10
PATHS, SEEDS = 200_000, range(5)
PERTURBATIONS, PERTURBATION_SIZES = 200, (1e-3, 1e-2, 1e-1)


def simulate(covariance: FloatArray, holdings: FloatArray, seed: int) -> tuple[float, float]:
    """Mean and standard error of exp(-wealth), trading step by step along simulated paths."""
    rng = np.random.default_rng(seed)
    paths = rng.standard_normal((PATHS, len(covariance))) @ np.linalg.cholesky(covariance).T
    wealth = ((paths @ holdings.T) * paths).sum(1)
    loss = np.exp(-wealth)
    return float(loss.mean()), float(loss.std() / np.sqrt(PATHS))


def check(hurst: float, information: Information) -> dict[str, Any]:
    """Monte Carlo against the formula, and perturbed strategies against the best."""
    whole = market_covariance(CHECKED_STEPS, hurst, CHECKED_ALPHA)
    covariance = whole[: information.num_variables, : information.num_variables]
    strategy = best_strategy(whole, information, CHECKED_STEPS)
    runs = [simulate(covariance, strategy.holdings, seed) for seed in SEEDS]
    mean = float(np.mean([run[0] for run in runs]))
    error = float(np.sqrt(np.sum([run[1] ** 2 for run in runs])) / len(runs))
    twice = np.linalg.inv(covariance) + 2 * (strategy.holdings + strategy.holdings.T)
    rng = np.random.default_rng(0)
    worse = []
    for size in PERTURBATION_SIZES:
        for _ in range(PERTURBATIONS):
            direction = rng.normal(size=covariance.shape)
            move = np.asarray(information.subspace.project(direction + direction.T))
            strength = size * np.abs(strategy.holdings).max() / np.abs(move).max()
            other = strategy.holdings + strength * np.tril(move, -1)
            worse.append(strategy.certainty_equivalent - certainty_equivalent(covariance, other))
    return {
        "hurst": hurst,
        "information": information.name,
        "formula": strategy.certainty_equivalent,
        "monte_carlo": -float(np.log(mean)),
        "half_width_95": 1.96 * error / mean,
        "finite_variance": bool(np.linalg.eigvalsh(twice)[0] > 0),
        "perturbed_strategies": len(worse),
        "least_loss_by_perturbing": float(np.min(worse)),
    }


def run() -> dict[str, Any]:
    curve = []
    for hurst in HURST:
        covariance = market_covariance(NUM_STEPS, hurst, ALPHA)
        for information in information_sets(NUM_STEPS, DELAY):
            strategy = best_strategy(covariance, information, NUM_STEPS)
            curve.append(
                {
                    "hurst": hurst,
                    "information": information.name,
                    "certainty_equivalent": strategy.certainty_equivalent,
                    "value": -float(np.exp(-strategy.certainty_equivalent)),
                    "residual": strategy.residual,
                    "method": strategy.method,
                }
            )
    sets = information_sets(CHECKED_STEPS, DELAY)
    checks = [check(hurst, information) for hurst in CHECKED_HURST for information in sets]
    settings = {"alpha": ALPHA, "num_steps": NUM_STEPS, "delay": DELAY, "horizon": 1.0}
    checked = {"alpha": CHECKED_ALPHA, "num_steps": CHECKED_STEPS, "paths": PATHS, "seeds": list(SEEDS)}
    return {"settings": settings, "curve": curve, "check_settings": checked, "checks": checks}


def plot(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heliostat"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    names = list(dict.fromkeys(row["information"] for row in results["curve"]))
    for name, style in zip(names, ("-", "--", ":", "-."), strict=True):
        rows = [row for row in results["curve"] if row["information"] == name]
        axes.plot([r["hurst"] for r in rows], [r["certainty_equivalent"] for r in rows], style, label=name)
    axes.set_xlabel("Hurst parameter H")
    axes.set_ylabel("certainty equivalent (nats of utility)")
    axes.legend(frameon=False, title="information")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "certainty_equivalent.svg", metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only draw the plot again, from results.json")
    if not parser.parse_args().plot:
        (HERE / "results.json").write_text(json.dumps(run(), indent=1) + "\n")
    plot(json.loads((HERE / "results.json").read_text()))

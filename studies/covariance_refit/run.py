"""Does refitting graphical lasso's pattern by maximum likelihood bring the estimate closer to the truth?

The truth is a random sparse precision matrix; five samples per row are drawn from it. ``sklearn``'s graphical lasso
finds a pattern (and a shrunken estimate); the refit is the log-det inverse decomposition of the sample covariance on
that pattern. Judged by KL(N(0, Σ*) ‖ N(0, B⁻¹)) against the true Σ*, which neither has seen.

    OMP_NUM_THREADS=1 python studies/covariance_refit/run.py          # needs scikit-learn (extra linalg-peers)
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat.linalg import ConvergenceError, SparsityPattern, inverse_decomposition

FloatArray = NDArray[np.float64]
HERE = Path(__file__).parent
SIZES, PENALTIES, SEEDS, SAMPLES_PER_ROW = (50, 100), (0.05, 0.1, 0.2, 0.3), range(10), 5
NEIGHBOURS = 4.0
BOOTSTRAP = 10_000


def truth(n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """A diagonally dominant sparse precision with about four neighbours a row, scaled to unit variances; and Σ*."""
    rng = np.random.default_rng([n, seed])
    edges = np.triu(rng.random((n, n)) < NEIGHBOURS / (n - 1), 1)
    weights = np.where(edges, rng.choice([-1, 1], (n, n)) * rng.uniform(0.3, 0.8, (n, n)), 0.0)
    precision = weights + weights.T
    precision += np.diag(np.abs(precision).sum(1) + 0.2)
    covariance = np.linalg.inv(precision)
    scale = np.sqrt(np.diag(covariance))
    return precision * scale[:, None] * scale, covariance / scale[:, None] / scale


def divergence(covariance: FloatArray, precision: FloatArray) -> float:
    """KL(N(0, covariance) ‖ N(0, precision⁻¹))."""
    log_dets = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(precision)[1]
    return float((np.sum(covariance * precision) - len(covariance) - log_dets) / 2)


def trial(n: int, penalty: float, seed: int) -> dict[str, Any]:
    from sklearn.covariance import graphical_lasso

    precision, covariance = truth(n, seed)
    samples = np.random.default_rng([n, seed, 1]).multivariate_normal(np.zeros(n), covariance, SAMPLES_PER_ROW * n)
    empirical = samples.T @ samples / len(samples)
    record: dict[str, Any] = {"n": n, "penalty": penalty, "seed": seed, "failure": ""}
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, estimate = graphical_lasso(empirical, penalty, max_iter=200)
        record["lasso_cpu_s"] = time.process_time() - start
        start = time.process_time()
        result = inverse_decomposition(empirical, SparsityPattern.from_mask(estimate))
    except (FloatingPointError, ConvergenceError) as error:
        return record | {"failure": f"{type(error).__name__}: {error}"}
    edges, true_edges = np.triu(estimate != 0, 1), np.triu(precision != 0, 1)
    return record | {
        "refit_cpu_s": time.process_time() - start,
        "lasso_kl": divergence(covariance, estimate),
        "refit_kl": divergence(covariance, result.B),
        "oracle_kl": divergence(covariance, inverse_decomposition(empirical, SparsityPattern.from_mask(true_edges)).B),
        "num_edges": int(edges.sum()),
        "num_true_edges": int(true_edges.sum()),
        "num_found": int((edges & true_edges).sum()),
        "residual": result.certificate.residual,
        "method": result.certificate.method,
    }


def interval(values: FloatArray) -> list[float]:
    """Mean with a 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (BOOTSTRAP, len(values)))].mean(1)
    return [float(values.mean()), *(float(edge) for edge in np.quantile(means, [0.025, 0.975]))]


def summarise(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for n in SIZES:
        for penalty in PENALTIES:
            rows = [t for t in trials if t["n"] == n and t["penalty"] == penalty and not t["failure"]]
            columns = {key: np.array([row[key] for row in rows]) for key in ("lasso_kl", "refit_kl", "oracle_kl")}
            out.append(
                {
                    "n": n,
                    "penalty": penalty,
                    "trials": len(rows),
                    **{key: interval(values) for key, values in columns.items()},
                    "refit_minus_lasso": interval(columns["refit_kl"] - columns["lasso_kl"]),
                    "edges": float(np.mean([row["num_edges"] for row in rows])),
                    "true_edges": float(np.mean([row["num_true_edges"] for row in rows])),
                    "found": float(np.mean([row["num_found"] for row in rows])),
                    "lasso_cpu_s": float(np.median([row["lasso_cpu_s"] for row in rows])),
                    "refit_cpu_s": float(np.median([row["refit_cpu_s"] for row in rows])),
                    "largest_residual": float(np.max([row["residual"] for row in rows])),
                }
            )
    return out


if __name__ == "__main__":
    trials = [trial(n, penalty, seed) for n in SIZES for penalty in PENALTIES for seed in SEEDS]
    summary = summarise(trials)
    (HERE / "results.json").write_text(json.dumps({"summary": summary, "trials": trials}, indent=1) + "\n")
    print(
        "| n | penalty | edges (true, found) | lasso KL | refit KL | refit - lasso | true pattern KL | CPU s of both |"
    )
    for row in summary:
        kls = [
            f"{row[key][0]:.2f} [{row[key][1]:.2f}, {row[key][2]:.2f}]"
            for key in ("lasso_kl", "refit_kl", "refit_minus_lasso", "oracle_kl")
        ]
        edges = f"{row['edges']:.0f} ({row['true_edges']:.0f}, {row['found']:.0f})"
        cpu = f"{row['lasso_cpu_s']:.3f} / {row['refit_cpu_s']:.3f}"
        print(f"| {row['n']} | {row['penalty']} | {edges} | " + " | ".join(kls) + f" | {cpu} |")

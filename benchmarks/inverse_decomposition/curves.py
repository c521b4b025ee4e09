"""Cost over size for each path through the library, with fitted exponents: where the method switch belongs.

    OMP_NUM_THREADS=1 python benchmarks/inverse_decomposition/curves.py          # about two CPU minutes
    python benchmarks/inverse_decomposition/curves.py --plot                     # plot and table again

CPU seconds (``time.process_time``), one thread, medians of repeats, certificates and checks included; exponents are
least-squares slopes of log time over log size on the three largest sizes, because small sizes measure overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from problems import random_problem

RESULTS = Path(__file__).parent / "results" / "curves.json"
PLOT = Path(__file__).parents[2] / "docs" / "images" / "linalg" / "cost_curves.svg"
ENOUGH_S = 0.5  # CPU seconds after which repeats stop


@dataclass(frozen=True)
class Path_:
    """One path: what its size means, which sizes are run, and how to prepare a call of that size."""

    meaning: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Callable[[], Any]]


def dense(method: str) -> Callable[[int], Callable[[], Any]]:
    def prepare(n: int) -> Callable[[], Any]:
        from heliostat.linalg import SparsityPattern, inverse_decomposition

        problem = random_problem(n, 0)
        pattern = SparsityPattern.from_mask(problem.mask)
        return lambda: inverse_decomposition(problem.covariance, pattern, method=method)

    return prepare


def few_pairs(n: int) -> Callable[[], Any]:
    from heliostat.linalg import LowRank, SpanOf, inverse_decomposition

    rng, covariance = np.random.default_rng(0), random_problem(n, 0).covariance
    pairs = rng.permutation(n)[:10].reshape(5, 2)
    space = SpanOf([LowRank(np.eye(n)[:, pair], [[0, 1], [1, 0]]) for pair in pairs])
    return lambda: inverse_decomposition(covariance, space)


def dense_tree(n: int) -> Callable[[], Any]:
    from heliostat.linalg import SparsityPattern, inverse_decomposition

    parents = np.r_[-1, np.random.default_rng(0).integers(0, np.arange(1, n))]
    covariance, pattern = random_problem(n, 0).covariance, SparsityPattern.tree(parents)
    return lambda: inverse_decomposition(covariance, pattern)


def exchangeable(n: int) -> Callable[[], Any]:
    from heliostat.linalg import BlockExchangeable, inverse_decomposition

    block = np.arange(n) * 5 // n
    covariance = 0.3 + 0.1 * np.eye(5)[block][:, block] + np.diag(1.0 + block)
    space = BlockExchangeable(np.bincount(block).tolist())
    return lambda: inverse_decomposition(covariance, space)


def band(width: int) -> Callable[[int], Callable[[], Any]]:
    def prepare(n: int) -> Callable[[], Any]:
        from heliostat.linalg import BandedMatrix, SparsityPattern, inverse_decomposition

        bands = np.random.default_rng(0).uniform(-1, 1, (width + 1, n))
        bands[0] = 2 * width + 1
        matrix, pattern = BandedMatrix(bands), SparsityPattern.banded(n, width)
        return lambda: inverse_decomposition(matrix, pattern)

    return prepare


def band_without_certificate(n: int) -> Callable[[], Any]:
    from heliostat.linalg.logdet.sparse import banded

    bands = np.random.default_rng(0).uniform(-1, 1, (2, n))
    bands[0], bands[1, -1] = 3.0, 0.0
    return lambda: banded.assemble(banded.factor_of_inverse(bands))


def sparse_tree(n: int) -> Callable[[], Any]:
    import scipy.sparse

    from heliostat.linalg import Partial, SparsityPattern, inverse_decomposition

    parents = np.r_[-1, np.random.default_rng(0).integers(0, np.arange(1, n))]
    child, parent = np.arange(1, n), parents[1:]
    pairs = np.r_[np.arange(n), child, parent], np.r_[np.arange(n), parent, child]
    known = scipy.sparse.csc_array((np.r_[np.ones(n), np.full(2 * n - 2, 0.5)], pairs), shape=(n, n))
    pattern = SparsityPattern.tree(parents)
    return lambda: inverse_decomposition(Partial(known), pattern)


def ring(n: int) -> Callable[[], Any]:
    import scipy.sparse

    from heliostat.linalg import SparsityPattern, inverse_decomposition

    index = np.arange(n)
    after = (index + 1) % n
    pairs = np.r_[index, index, after], np.r_[index, after, index]
    covariance = scipy.sparse.csc_array((np.r_[np.full(n, 2.5), -np.ones(2 * n)], pairs), shape=(n, n))
    pattern = SparsityPattern(n, np.stack([index, after], 1))
    return lambda: inverse_decomposition(covariance, pattern)


def marginals(p: int) -> Callable[[], Any]:
    import torch

    from heliostat.linalg import kronecker_sum_from_marginals

    rows = torch.logspace(0, -4, p, dtype=torch.float64)
    return lambda: kronecker_sum_from_marginals(rows, rows.flip(0))


PATHS = {
    "dual Newton": Path_("rows", (10, 20, 40, 80, 160, 320, 640), dense("dual_newton")),
    "dual Newton-CG": Path_("rows", (10, 20, 40, 80, 160, 320, 640, 1280), dense("dual_newton_cg")),
    "Schur + primal Newton, 5 free pairs": Path_("rows", (20, 80, 320, 1280), few_pairs),
    "closed form, dense A, tree": Path_("rows", (20, 80, 320, 1280), dense_tree),
    "closed form, block-exchangeable": Path_("rows", (20, 80, 320, 1280), exchangeable),
    "closed form, tridiagonal storage": Path_("rows", (1_000, 10_000, 100_000, 1_000_000), band(1)),
    "the same without checks and certificate": Path_("rows", (10_000, 100_000, 1_000_000), band_without_certificate),
    "closed form, bandwidth 8": Path_("rows", (1_000, 10_000, 100_000, 1_000_000), band(8)),
    "closed form, sparse tree": Path_("rows", (1_000, 10_000, 100_000, 1_000_000), sparse_tree),
    "chordal embedding, ring": Path_("rows", (100, 1_000, 10_000), ring),
    "Kronecker-sum marginals, p = q": Path_("p", (8, 32, 128, 512, 1024), marginals),
}


def time_call(call: Callable[[], Any]) -> float:
    call()
    seconds: list[float] = []
    while sum(seconds) < ENOUGH_S and len(seconds) < 9:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def run() -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    out = {}
    for name, path in PATHS.items():
        seconds = [time_call(path.prepare(size)) for size in path.sizes]
        out[name] = {"size": path.meaning, "sizes": path.sizes, "cpu_s": seconds}
        print(name, out[name], flush=True)
    return out


def exponent(row: dict[str, Any]) -> float:
    """Least-squares slope of log time over log size on the three largest sizes."""
    return float(np.polyfit(np.log(row["sizes"][-3:]), np.log(row["cpu_s"][-3:]), 1)[0])


def table(results: dict[str, Any]) -> str:
    lines = ["| path | size | CPU s at the largest | exponent |", "|---|--:|--:|--:|"]
    for name, row in results.items():
        lines.append(
            f"| {name} | {row['size']} = {row['sizes'][-1]:,} | {row['cpu_s'][-1]:.3g} | {exponent(row):.2f} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heliostat"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for k, (name, row) in enumerate(results.items()):
        style = {"marker": "os^v"[k % 4], "color": pyplot.get_cmap("tab20")(k), "ms": 4, "lw": 1}
        axes.loglog(row["sizes"], row["cpu_s"], label=f"{name} ({exponent(row):.1f})", **style)
    axes.set_xlabel("rows (p for the marginals)")
    axes.set_ylabel("CPU seconds, one thread")
    axes.legend(frameon=False, fontsize=7, title="path (exponent)", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="plot and table from the committed results")
    if not parser.parse_args().plot:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(run(), indent=1) + "\n")
    saved = json.loads(RESULTS.read_text())
    plot(saved)
    print(table(saved))

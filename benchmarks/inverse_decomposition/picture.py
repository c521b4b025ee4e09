"""Draw A = B⁻¹ + C for four subspaces: docs/images/linalg/four_subspaces.svg.

python benchmarks/inverse_decomposition/picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from heliostat.linalg import BlockExchangeable, KroneckerSum, SparsityPattern, inverse_decomposition

PLOT = Path(__file__).parents[2] / "docs" / "images" / "linalg" / "four_subspaces.svg"


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heliostat"
    from matplotlib import pyplot

    n = 20
    position = np.linspace(0, 1, n)
    distance = np.abs(np.subtract.outer(position, position))
    bumps = np.cos(9 * position)[:, None] * np.cos(9 * position)
    A = np.exp(-4 * distance) + 0.35 * bumps + 0.1 * np.eye(n)
    ring = [(i, (i + 1) % n) for i in range(n)] + [(i, (i + 7) % n) for i in range(n)]
    spaces = {
        "banded (closed form)": SparsityPattern.banded(n, 2),
        "ring with chords (Newton)": SparsityPattern(n, ring),
        "Kronecker sum 4 × 5": KroneckerSum(4, 5),
        "C constant on blocks": BlockExchangeable([5, 7, 8]),
    }
    figure, axes = pyplot.subplots(4, 4, figsize=(7.2, 7.6), layout="constrained")
    for axis, title in zip(axes[0], ("A   =", "B⁻¹   +", "C", "B"), strict=True):
        axis.set_title(title)
    for row, (name, space) in zip(axes, spaces.items(), strict=True):
        result = inverse_decomposition(A, space)
        panels = (A, np.linalg.inv(result.B), result.C, result.B)
        for axis, panel in zip(row, panels, strict=True):
            limit = np.abs(result.B if panel is result.B else A).max()
            axis.imshow(panel, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{name}\nKL {result.kl:.2f}", fontsize=8)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()

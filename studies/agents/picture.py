"""Draw success against steps for runs of the recipe agent, with the table visible and hidden.

heliostat train agent --run runs/agent
heliostat train agent --environment.blind true --run runs/blind
python studies/agents/picture.py runs/agent runs/blind docs/images/agents/lookup.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

LABELS = ("the calls are answered", "control: answers have nothing to do with the table")


def curve(folder: Path) -> tuple[list[int], list[float]]:
    """Return the steps of a run and the success of their rollouts."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["step"] > 0 and "reward/success" in row]
    return [row["step"] for row in trained], [row["reward/success"] for row in trained]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "heliostat"  # the same file from the same runs
    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    for folder, label in zip(options.runs, LABELS, strict=True):
        axes.plot(*curve(folder), label=label)
    axes.axhline(1 / 90, color="grey", linewidth=0.8, linestyle=":", label="a guess")
    axes.set(xlabel="step", ylabel="share of episodes that succeed", ylim=(0, 1))
    axes.legend(frameon=False, loc="center right")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()

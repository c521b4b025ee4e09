"""Draw success against steps for runs on episodes: one run, or one beside its control.

heliostat train agent --run runs/agent
heliostat train agent --environment.blind true --run runs/blind
python studies/agents/picture.py runs/agent runs/blind docs/images/agents/lookup.svg
python studies/agents/picture.py docs/examples/smollm2-agent docs/images/agents/database.svg --heldout --guess 0.075
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

LABELS = {
    1: ("training problems",),
    2: ("the calls are answered", "control: answers have nothing to do with the table"),
}
"""Curves by the number of runs."""

GUESS = 1 / 90
"""Success without calls in the recipe agent."""


def curve(folder: Path) -> tuple[list[int], list[float]]:
    """Return the steps of a run and the success of their rollouts."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["step"] > 0 and "reward/success" in row]
    return [row["step"] for row in trained], [row["reward/success"] for row in trained]


def heldout(folder: Path) -> tuple[list[int], list[float], list[list[float]]]:
    """Return the steps of a run's full evaluations, their pass@1, and the lengths of the intervals below and above."""
    summary = json.loads((folder / "summary.json").read_text())
    found = [(0, summary["before"]), (summary["steps"], summary["after"])]
    rates = [one["pass@1"] for _, one in found]
    below = [one["pass@1"] - one["ci95"][0] for _, one in found]
    above = [one["ci95"][1] - one["pass@1"] for _, one in found]
    return [step for step, _ in found], rates, [below, above]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="at most two, the second one the control")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--guess", type=float, default=GUESS, help="success without the tool")
    parser.add_argument("--heldout", action="store_true", help="draw held-out success before and after, with intervals")
    options = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "heliostat"  # the same file from the same runs
    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    for number, (folder, label) in enumerate(zip(options.runs, LABELS[len(options.runs)], strict=True)):
        axes.plot(*curve(folder), color=f"C{number}", label=label)
        if options.heldout:
            steps, rates, spread = heldout(folder)
            label = "held-out problems with 95% intervals"
            axes.errorbar(steps, rates, spread, fmt="o", color=f"C{number}", markersize=4, capsize=3, label=label)
    axes.axhline(options.guess, color="grey", linewidth=0.8, linestyle=":", label="a guess")
    axes.set(xlabel="step", ylabel="share of episodes that succeed", ylim=(0, 1.04 if options.heldout else 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="center right")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()

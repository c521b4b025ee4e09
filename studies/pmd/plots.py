"""The study's plots, from results.jsonl: success against staleness, against the learning rate, and against τ.

Left out: the tables (``analysis``) and the plot of ``bridge.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis import finals
from arms import BASELINES, COUNTS, MEAN, MEANS, PARTS, RATES, REINFORCE, Arm, Done, screened

from heliostat.statistics import bootstrap

SHOWN: tuple[tuple[Arm, str, str], ...] = (
    *((arm, colour, ":") for arm, colour in zip(BASELINES, ("#808080", "#2f9470", "#8a63b8", "#c2588c"), strict=True)),
    *((arm, colour, "-") for arm, colour in zip(MEANS[::2], ("#9dc0ee", "#4a84cf", "#1f4f8f"), strict=True)),
    *((arm, colour, "--") for arm, colour in zip(PARTS, ("#e0a872", "#c9772b"), strict=True)),
)


def draw_all(done: Done, images: Path) -> None:
    """Write every plot."""
    images.mkdir(parents=True, exist_ok=True)
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "heliostat", "svg.fonttype": "none"}):
        against_staleness(done, images / "updates-per-batch.svg")
        against_rate(done, images / "learning-rate.svg")
        against_tau(done, images / "tau.svg")


def finished(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes: Any, points: list[tuple[float, list[float]]], **style: Any) -> None:
    """Means with intervals where there are runs."""
    drawn = [(x, bootstrap(values)) for x, values in points if values]
    if drawn:
        ys = [estimate.value for _, estimate in drawn]
        ends = [[e.value - e.low for _, e in drawn], [e.high - e.value for _, e in drawn]]
        axes.errorbar([x for x, _ in drawn], ys, ends, marker=".", capsize=2, **style)


def against_staleness(done: Done, path: Path) -> None:
    """Final success against updates per batch, tuned methods with intervals."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, (arm, colour, style) in enumerate(SHOWN):
        shift = 1.035 ** (index - 4)
        points = [(count * shift, finals(replace(arm, updates_per_batch=count), done)) for count in COUNTS]
        bars(axes, points, color=colour, linestyle=style, label=arm.method)
    finished(axes, "updates per batch", "held-out success at the end")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, transparent=True, metadata={"Date": None})


def against_rate(done: Done, path: Path) -> None:
    """Final success against the learning rate, one panel for each screen."""
    from matplotlib import pyplot

    counts = [count for count in COUNTS if screened(replace(MEAN, updates_per_batch=count), done)]
    figure, panels = pyplot.subplots(1, len(counts), figsize=(11, 3.6), layout="constrained", sharey=True)
    for axes, count in zip(panels, counts, strict=True):
        for arm, colour, style in SHOWN:
            if means := screened(replace(arm, updates_per_batch=count), done):
                axes.plot(RATES[count], list(means.values()), style, color=colour, marker=".", label=arm.method)
        finished(axes, "learning rate", "held-out success at the end" if axes is panels[0] else "")
        axes.set_xticks(RATES[count], [f"{rate:g}" for rate in RATES[count]])
        axes.minorticks_off()
        axes.set_title(f"{count} per batch")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, transparent=True, metadata={"Date": None})


def against_tau(done: Done, path: Path) -> None:
    """Final success of PMD-mean against τ, with REINFORCE (τ = 0) as a band."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for count, colour in ((16, "#4a84cf"), (64, "#1f4f8f")):
        points = [(float(arm.settings["tau"]), finals(replace(arm, updates_per_batch=count), done)) for arm in MEANS]
        bars(axes, points, color=colour, label=f"pmd-mean, {count} updates per batch")
        if limit := finals(replace(REINFORCE, updates_per_batch=count), done):
            estimate = bootstrap(limit)
            axes.axhspan(estimate.low, estimate.high, color=colour, alpha=0.15, label=f"reinforce, {count}")
    finished(axes, "τ", "held-out success at the end")
    axes.set_xticks([arm.settings["tau"] for arm in MEANS], [f"{arm.settings['tau']:g}" for arm in MEANS])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=f"chosen: {MEAN.method}")
    figure.savefig(path, transparent=True, metadata={"Date": None})

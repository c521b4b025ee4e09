"""The study's pictures, from results.jsonl alone. Left out: which runs count (``analysis``)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import Row, runs_of

FRACTIONS = tuple(number / 10 for number in range(10))
LONG = (
    *("rl-8", "rl-8-long", "rl-8-long-slow", "rl-8-longest"),
    *("prefix-long", "shortest-long", "annealed-long", "sft-rl", "importance"),
)
SHORT = ("rl-8", "prefix", "shortest", "targeted", "sft-rl")


def draw_pictures(tasks: Sequence[str], rows: Sequence[Row], images: Path) -> None:
    """Write every picture into a folder."""
    images.mkdir(parents=True, exist_ok=True)
    over_flops = {"hard pass@1, no prefix": "train", "hard problems with p > 1/2": "solved"}
    grid(tasks, rows, images / "success-by-flops.svg", over_flops, spent, "FLOP spent, collection included")
    over_time = {"groups of plain prompts that all fail": "all_fail_plain", "entropy, plain prompts": "entropy_plain"}
    grid(tasks, rows, images / "groups-over-time.svg", over_time, share_done, "share of the updates")
    fractions(tasks, rows, images / "success-by-fraction.svg")


def shown(task: str, rows: Sequence[Row]) -> list[str]:
    """Arms drawn for a task: the long ones where there are any."""
    arms = LONG if runs_of(rows, task, "rl-8-long") else SHORT
    return [arm for arm in arms if runs_of(rows, task, arm)]


def spent(run: Row, key: str) -> list[tuple[float, float]]:
    """A quantity of the checks against everything spent."""
    return [(point["flops"], point[key]) for point in run["curve"] if point["flops"] > 0]


def share_done(run: Row, key: str) -> list[tuple[float, float]]:
    """A quantity of the stretches between checks against time."""
    phases = run["phases"]
    return [((n + 0.5) / len(phases), phase[key]) for n, phase in enumerate(phases) if key in phase]


def grid(
    tasks: Sequence[str],
    rows: Sequence[Row],
    path: Path,
    quantities: Mapping[str, str],
    points: Callable[[Row, str], list[tuple[float, float]]],
    xlabel: str,
) -> None:
    """A column for every task, a row for every quantity, one line a seed."""
    pyplot = quiet_pyplot()
    figure, axes = pyplot.subplots(
        len(quantities), len(tasks), figsize=(4.2 * len(tasks), 3.2 * len(quantities)), squeeze=False, sharex="col"
    )
    for column, task in zip(axes.T, tasks, strict=True):
        for axis, (label, key) in zip(column, quantities.items(), strict=True):
            for arm in shown(task, rows):
                for number, run in enumerate(runs_of(rows, task, arm)):
                    drawn = points(run, key)
                    if drawn:
                        name = arm if number == 0 else None
                        axis.plot(*zip(*drawn, strict=True), color=color(arm), lw=1.2, label=name)
            axis.set(ylabel=label if task == tasks[0] else "", xscale="log" if points is spent else "linear")
        column[0].set(title=task)
        column[-1].set(xlabel=xlabel)
    for task, axis in zip(tasks, axes[0], strict=True):
        if task in (tasks[0], tasks[-1]):
            axis.legend(fontsize=7, frameon=False)
    save(figure, path)


def fractions(tasks: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    """Success behind each share of the solution: at the start, half way, and at the end."""
    pyplot = quiet_pyplot()
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        long = bool(runs_of(rows, task, "rl-8-long"))
        for arm in ("rl-8-long", "prefix-long", "prefix-only-long") if long else ("rl-8", "prefix", "prefix-only"):
            runs = runs_of(rows, task, arm)
            if not runs:
                continue
            axis.plot(FRACTIONS, runs[0]["curve"][0]["by_fraction"], color="black", lw=0.8)
            for point, style in ((len(runs[0]["curve"]) // 2, ":"), (-1, "-")):
                columns = zip(*(run["curve"][point]["by_fraction"] for run in runs), strict=True)
                means = [statistics.mean(values) for values in columns]
                axis.plot(FRACTIONS, means, style, color=color(arm), label=arm if point == -1 else None)
        axis.axvspan(0.4, 0.8, color="0.93", zorder=-1)
        axis.set(title=task, xlabel="share of the solution given", ylim=(0, 1))
        axis.legend(fontsize=7, frameon=False)
    axes[0][0].set(ylabel="success of the rest")
    save(figure, path)


def color(arm: str) -> str:
    """The same for an arm and its long form, but for plain RL, which is drawn in both."""
    names = (
        *("rl-8-long", "prefix", "shortest", "annealed", "sft-rl", "importance", "targeted", "prefix-only", "rl-8"),
        "rl-8-long-slow",
    )
    if arm == "rl-8-longest":
        return "black"
    return f"C{names.index(arm if arm in names else arm.removesuffix('-long'))}"


def quiet_pyplot() -> Any:
    """Drawing without a window, the same bytes every time."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prefixrl"
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

"""Tables and plots of the study, from results.jsonl alone.

Left out: training (``arena``) and what it means (``README.md``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import ARMS, TRIAL_SEED

Row = Mapping[str, Any]
ORDER = ("rl-8", "rl-64", "prefix", "prefix-only", "shortest", "sft-rl", "importance", "luffy", "unrelated-only")
FRACTIONS = tuple(number / 10 for number in range(10))


def draw_all(rows: Sequence[Row], tables: Path, images: Path) -> None:
    """Write ``tables.md`` and the pictures."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    tables.write_text("\n".join(line for task in tasks for line in of_task(task, rows)))
    images.mkdir(parents=True, exist_ok=True)
    plot_curves(tasks, rows, images / "success-by-flops.svg")
    plot_fractions(tasks, rows, images / "success-by-fraction.svg")


def trials_of(rows: Sequence[Row], task: str, arm: str) -> dict[float, float]:
    """Final hard pass@1 of the trial seed by rate."""
    trials = [row for row in rows if (row["task"], row.get("arm"), row.get("seed")) == (task, arm, TRIAL_SEED)]
    return {row["lr"]: row["curve"][-1]["train"] for row in trials}


def best_rate(rows: Sequence[Row], task: str, arm: str) -> float:
    """The rate whose trial ended best; the first of the equals."""
    trials = trials_of(rows, task, arm)
    return max(trials, key=lambda rate: trials[rate])


def runs_of(rows: Sequence[Row], task: str, arm: str) -> list[Row]:
    """Runs of all seeds but the trial's, at the rate that its trials chose."""
    trials = trials_of(rows, task, ARMS[arm].rate_of or arm)
    if not trials:
        return []
    chosen = max(trials, key=lambda rate: trials[rate])
    named = [row for row in rows if row["task"] == task and row.get("arm") == arm and row["lr"] == chosen]
    return [row for row in named if row["seed"] != TRIAL_SEED]


def of_task(task: str, rows: Sequence[Row]) -> list[str]:
    """A task's start and its arms, as Markdown."""
    start = next((row for row in rows if row["task"] == task and "num_hard" in row), None)
    lines = [f"## {task}", ""]
    if start:
        lines += [
            f"{start['num_parameters']:,} parameters; {start['num_candidates']} candidates: {start['num_easy']} solved "
            f"within 512 attempts, {start['num_hard']} hard, {start['num_unsolved']} unsolved at the cap; "
            f"{start['attempts']:,} attempts, {start['flops_all_candidates']:.3g} FLOP for all of them.",
            "",
            quantiles("success of candidates", start["candidates_p"]),
            quantiles("success of hard problems", start["hard_p"]),
            "",
        ]
    arms = [arm for arm in ORDER if runs_of(rows, task, arm)]
    if arms:
        first = runs_of(rows, task, arms[0])[0]["curve"][0]
        lines += [
            f"Start: hard {first['train']:.4f}, held-out {first['heldout']:.4f}. Tabular bound of prefix-only: "
            f"{first['before_cut']:.4f}, were every later step certain.",
            "",
        ]
        lines += [*ending(task, arms, rows), "", *behaviour(task, arms, rows), ""]
    return lines


def quantiles(name: str, values: Sequence[float]) -> str:
    """Five numbers of a sorted list."""
    picked = [values[round(share * (len(values) - 1))] for share in (0, 0.1, 0.5, 0.9, 1)]
    return f"- {name}, 0/10/50/90/100%: {', '.join(f'{value:.2g}' for value in picked)}"


def spread(runs: Sequence[Row], read: Callable[[Row], float], digits: int = 3) -> str:
    """Mean over seeds, with the least and the greatest."""
    values = [read(run) for run in runs]
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def last(key: str) -> Callable[[Row], float]:
    return lambda row: float(row["curve"][-1][key])


def ending(task: str, arms: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """What each arm ends with, and what it cost."""
    lines = [
        "| arm | seeds | hard pass@1 | hard pass@64 | solved | held-out pass@1 | first token | GFLOP, all | of these "
        "collection | without sharing |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for arm in arms:
        runs = runs_of(rows, task, arm)
        cells = [spread(runs, last(key)) for key in ("train", "train_at_64", "solved", "heldout", "first_token")]
        flops = [statistics.mean(last(key)(run) for run in runs) / 1e9 for key in ("flops", "unshared_flops")]
        collection = runs[0]["ledger"].get("collection", 0.0) / 1e9
        lines.append(
            f"| {arm} | {len(runs)} | {' | '.join(cells)} | {flops[0]:.0f} | {collection:.0f} | {flops[1]:.0f} |"
        )
    return lines


def behaviour(task: str, arms: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Groups without signal, entropy and gradients: first ten updates, then the last ten."""
    keys = ("all_fail_plain", "all_fail_prefixed", "all_solved_prefixed", "entropy_plain", "entropy_prefixed")
    lines = [
        f"| arm | {' | '.join(key.replace('_', ' ') for key in keys)} | gradient norm, mean ± SD |",
        "|---|" + "--:|" * 6,
    ]
    for arm in arms:
        runs = runs_of(rows, task, arm)

        def both(read: Callable[[Row], float | None], runs: Sequence[Row] = runs) -> str:
            means = []
            for index in (0, -1):
                values = [value for run in runs if (value := read(run["phases"][index])) is not None]
                means.append(f"{statistics.mean(values):.2f}" if values else "")
            return " to ".join(means) if all(means) else ""

        cells = [both(lambda phase, key=key: phase.get(key)) for key in keys]
        norms = [phase["grad_norm"] for run in runs for phase in run["phases"] if "grad_norm" in phase]
        spreads = [phase["grad_norm_sd"] for run in runs for phase in run["phases"] if "grad_norm_sd" in phase]
        norm = f"{statistics.mean(norms):.2f} ± {statistics.mean(spreads):.2f}" if norms else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {norm} |")
    return lines


def plot_curves(tasks: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    """No-prefix success on hard problems against everything that was spent, one line a seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prefixrl"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for index, arm in enumerate(ORDER):
            for number, run in enumerate(runs_of(rows, task, arm)):
                points = [(point["flops"], point["train"]) for point in run["curve"] if point["flops"] > 0]
                label = arm if number == 0 else None
                axis.plot(*zip(*points, strict=True), color=f"C{index}", lw=1.2, label=label)
        axis.set(title=task, xscale="log", xlabel="FLOP spent, collection included", ylabel="hard pass@1, no prefix")
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot_fractions(tasks: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    """Success behind each share of the solution: start, and end of the arms that train behind prefixes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prefixrl"
    from matplotlib import pyplot

    arms = ("rl-8", "prefix", "prefix-only")
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for index, arm in enumerate(arms):
            runs = runs_of(rows, task, arm)
            if not runs:
                continue
            if index == 0:
                axis.plot(FRACTIONS, runs[0]["curve"][0]["by_fraction"], color="0.6", label="start")
            middle = len(runs[0]["curve"]) // 2
            for point, style in ((middle, ":"), (-1, "-")):
                means = [
                    statistics.mean(values)
                    for values in zip(*(r["curve"][point]["by_fraction"] for r in runs), strict=True)
                ]
                label = arm if point == -1 else f"{arm}, half way"
                axis.plot(FRACTIONS, means, style, color=f"C{index}", label=label)
        axis.axvspan(0.4, 0.8, color="0.93", zorder=-1)
        axis.set(title=task, xlabel="share of the solution given", ylabel="success of the rest", ylim=(0, 1))
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

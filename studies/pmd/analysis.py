"""From results.jsonl to tables.md and two plots.

Averages are over confirmed runs (fresh seeds) only, except where a table is about the screen itself.

Intervals are 95% bootstrap intervals over seeds; differences are taken seed by seed, on the same problems and streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    BASELINES,
    COUNTS,
    EVERY,
    FRESH_SEEDS,
    LENGTHS,
    MEANS,
    PARTS,
    RATES,
    RELATIVES,
    SCREEN_SEEDS,
    SCREENED,
    Arm,
    Done,
    Run,
    best_rate,
    final,
    find,
)

from heliostat.statistics import Estimate, bootstrap

Row = Mapping[str, Any]
REFERENCE = BASELINES[0]


def confirmed(arm: Arm, done: Done) -> dict[int, Row]:
    """Fresh-seed results of an arm at its chosen rate, by seed."""
    rate = best_rate(arm, done)
    rows = {seed: find(Run(arm, rate, seed), done) for seed in FRESH_SEEDS} if rate else {}
    return {seed: row for seed, row in rows.items() if row is not None}


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Mean and interval, with the number of seeds where it is not five."""
    if not values:
        return "–"
    estimate: Estimate = bootstrap(values)
    count = "" if len(values) == len(FRESH_SEEDS) else f" ({len(values)} seeds)"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]{count}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = "|" + " --- |" * len(head)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])


def finals(arm: Arm, done: Done) -> list[float]:
    return [final(row) for row in confirmed(arm, done).values()]


def against(arm: Arm, other: Arm, done: Done) -> list[float]:
    """Final success minus the other arm's, seed by seed."""
    mine, theirs = confirmed(arm, done), confirmed(other, done)
    return [final(mine[seed]) - final(theirs[seed]) for seed in mine if seed in theirs]


def by_variant(arms: Sequence[Arm], variants: Mapping[str, Mapping[str, Any]], done: Done) -> str:
    """Final success of methods (rows) under variants of their arms (columns), with the rate chosen."""
    rows = [
        [f"{arm.method}", *(f"{cell(finals(replace(arm, **change), done))}" for change in variants.values())]
        for arm in arms
    ]
    return table(["method", *variants], [row for row in rows if any(value != "–" for value in row[1:])])


def screened(arm: Arm, done: Done) -> list[float]:
    """Mean final success of a method's screen by learning rate; empty while it has gaps."""
    arm = replace(arm, updates_per_batch=SCREENED)
    found = [[find(Run(arm, lr, seed), done) for seed in SCREEN_SEEDS] for lr in RATES]
    if not all(row for rows in found for row in rows):
        return []
    return [float(np.mean([final(row) for row in rows if row])) for rows in found]


def rates(done: Done) -> str:
    """The screens, and what the highest rate costs."""
    rows = [
        [arm.method, *(f"{mean:.3f}" for mean in means), f"{max(means) - means[-1]:.3f}"]
        for arm in EVERY
        if (means := screened(arm, done))
    ]
    return table(["method", *(f"lr {lr:g}" for lr in RATES), "lost at the highest"], rows)


def differences(arms: Sequence[Arm], change: Mapping[str, Any], other: Arm, done: Done) -> str:
    rows = [
        [arm.method, cell(against(replace(arm, **change), replace(other, **change), done))]
        for arm in arms
        if arm.method != other.method
    ]
    return table(["method", f"minus {other.method}"], rows)


def numbers(done: Done, count: int, which: str) -> str:
    """The mirror step's numbers in the first or the last phase of the confirmed runs."""
    keys = {
        "λ̂": "policy/lambda_hat",
        "mean ρ": "policy/mean_ratio",
        "χ²": "policy/chi_square",
        "s correct": "policy/log_ratio_correct",
        "s incorrect": "policy/log_ratio_incorrect",
        "max \\|s\\|": "policy/max_log_ratio",
        "solved": "policy/solved",
        "entropy": "policy/entropy",
    }
    rows = []
    for arm in (replace(arm, updates_per_batch=count) for arm in EVERY):
        found = list(confirmed(arm, done).values())
        if found:
            values = [[row[which][key] for row in found if key in row[which]] for key in keys.values()]
            rows.append([arm.method, *(f"{np.mean(value):.3g}" if value else "–" for value in values)])
    return table(["method", *keys], rows)


def lengths(done: Done) -> str:
    """Mean length of the rollouts in the first and the last phase, where dots cost nothing."""
    rows = []
    for arm in LENGTHS:
        found = list(confirmed(arm, done).values())
        change = [row["last"]["length/mean"] - row["first"]["length/mean"] for row in found]
        reward = [row["last"]["reward/mean"] - row["first"]["reward/mean"] for row in found]
        begun = f"{np.mean([row['first']['reward/mean'] for row in found]):.3f}" if found else "–"
        rows.append([arm.method, arm.start.removeprefix("dotted-"), begun, cell(reward), cell(change, 2)])
    return table(["method", "start", "reward in the first phase", "change of reward", "change of length, tokens"], rows)


def costs(done: Done) -> str:
    """CPU seconds and FLOPs of a run by updates per batch (all methods together: they cost the same)."""
    rows = []
    for count in sorted(COUNTS):
        ends = [row["curve"][-1] for row in done if row["updates_per_batch"] == count and not row["lag"]]
        if ends:
            cpu = float(np.median([end["cpu_s"] for end in ends]))
            flops = float(np.median([end["flops"] for end in ends]))
            rows.append([str(count), f"{cpu:.2f}", f"{flops / 1e9:.1f}", str(len(ends))])
    return table(["updates per batch", "CPU s (median)", "GFLOP (median)", "runs"], rows)


def sections(done: Done) -> dict[str, str]:
    """Every table by its heading."""
    counts = {f"{count} per batch": {"updates_per_batch": count} for count in sorted(COUNTS)}
    lags = {
        f"lag 64, anchor {anchor}": {"lag": 64, "updates_per_batch": 1, "anchor": anchor}
        for anchor in ("sampler", "recomputed")
    }
    at: Callable[[int], dict[str, Any]] = lambda count: {"updates_per_batch": count}  # noqa: E731
    return {
        "Final held-out success, low start": by_variant(EVERY, counts, done),
        "Minus REINFORCE, low start, 16 updates per batch": differences(EVERY, at(16), REFERENCE, done),
        "Minus REINFORCE, low start, 64 updates per batch": differences(EVERY, at(64), REFERENCE, done),
        "Minus GRPO, low start, 64 updates per batch": differences(EVERY, at(64), BASELINES[1], done),
        "Final held-out success, high start": by_variant(
            EVERY, {f"{count} per batch": {**at(count), "start": "high"} for count in (16, 64)}, done
        ),
        "Final held-out success by group size, 16 updates per batch": by_variant(
            EVERY, {f"groups of {size}": {**at(16), "group_size": size} for size in (4, 8, 16)}, done
        ),
        "Final held-out success with a lag": by_variant(EVERY, lags, done),
        "Relatives of PMD-mean at 64 updates per batch": by_variant(
            (MEANS[1], PARTS[0], *RELATIVES), {"64 per batch": at(64)}, done
        ),
        "Relatives minus PMD-mean at τ = 0.2": differences((PARTS[0], *RELATIVES), at(64), MEANS[1], done),
        "Screen, 64 updates per batch: final held-out success by learning rate": rates(done),
        "First phase, 64 updates per batch, low start": numbers(done, 64, "first"),
        "Last phase, 16 updates per batch, low start": numbers(done, 16, "last"),
        "Lengths where they neither cost nor earn, 16 updates per batch": lengths(done),
        "Cost of a run": costs(done),
    }


def draw_all(done: Done, tables: Path, images: Path) -> None:
    """Write the tables and the plots."""
    head = "Written by `python studies/pmd/run.py --only-draw` from results.jsonl: "
    text = [head + f"{len(done)} runs. Means over fresh seeds with 95% bootstrap intervals.", ""]
    for title, body in sections(done).items():
        text += [f"## {title}", "", body, ""]
    tables.write_text("\n".join(text))
    images.mkdir(parents=True, exist_ok=True)
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "heliostat", "svg.fonttype": "none"}):
        against_staleness(done, images / "updates-per-batch.svg")
        against_rate(done, images / "learning-rate.svg")


SHOWN = (
    *((arm, colour, ":") for arm, colour in zip(BASELINES, ("#808080", "#2f9470", "#8a63b8", "#c2588c"), strict=True)),
    *((arm, colour, "-") for arm, colour in zip(MEANS, ("#9dc0ee", "#4a84cf", "#1f4f8f"), strict=True)),
    *((arm, colour, "--") for arm, colour in zip(PARTS, ("#e0a872", "#c9772b"), strict=True)),
)


def finished(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.spines[["top", "right"]].set_visible(False)


def against_staleness(done: Done, path: Path) -> None:
    """Final success against updates per batch, tuned methods with intervals."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, (arm, colour, style) in enumerate(SHOWN):
        points = [(count, finals(replace(arm, updates_per_batch=count), done)) for count in sorted(COUNTS)]
        drawn = [(count, bootstrap(values)) for count, values in points if values]
        if drawn:
            xs = [count * 1.035 ** (index - 4) for count, _ in drawn]
            ys = [estimate.value for _, estimate in drawn]
            ends = [[e.value - e.low for _, e in drawn], [e.high - e.value for _, e in drawn]]
            axes.errorbar(xs, ys, ends, color=colour, linestyle=style, marker=".", capsize=2, label=arm.method)
    finished(axes, "updates per batch", "held-out success at the end")
    axes.set_xticks(sorted(COUNTS), [str(count) for count in sorted(COUNTS)])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, transparent=True, metadata={"Date": None})


def against_rate(done: Done, path: Path) -> None:
    """Final success in the screens against the learning rate."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for arm, colour, style in SHOWN:
        if means := screened(arm, done):
            axes.plot(RATES, means, style, color=colour, marker=".", label=arm.method)
    finished(axes, "learning rate", "held-out success at the end")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, transparent=True, metadata={"Date": None})

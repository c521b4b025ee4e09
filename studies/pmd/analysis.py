"""From results.jsonl and confirmation.jsonl to the tables of tables.md.

Averages are over confirmed runs (fresh seeds) only, except where a table is about a screen. Intervals are 95% bootstrap
intervals over seeds, differences are taken seed by seed, on the same problems and streams; only SmolLM2's two seeds are
averaged first, and its intervals are over problems.

Left out: the plots (``plots``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from arms import (
    CLIPS,
    COUNTS,
    EVERY,
    FRESH_SEEDS,
    GRPO,
    LENGTHS,
    MAIN,
    MEAN,
    PARTS,
    RATES,
    REINFORCE,
    RELATIVES,
    Arm,
    Done,
    Row,
    Run,
    best_rate,
    final,
    screened,
)

from heliostat.statistics import Estimate, bootstrap


def confirmed(arm: Arm, done: Done) -> dict[int, Row]:
    """Fresh-seed results of an arm at its chosen rate, by seed."""
    rate = best_rate(arm, done)
    rows = {seed: done.find(Run(arm, rate, seed)) for seed in FRESH_SEEDS} if rate else {}
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


def rates(count: int, arms: Sequence[Arm], done: Done) -> str:
    """A screen by learning rate, and what the highest rate costs."""
    means = {arm.method: screened(replace(arm, updates_per_batch=count), done) for arm in arms}
    rows = [
        [
            method,
            *(f"{value:.3f}" for value in by_rate.values()),
            f"{max(by_rate.values()) - by_rate[RATES[count][-1]]:.3f}",
        ]
        for method, by_rate in means.items()
        if by_rate
    ]
    return table(["method", *(f"lr {lr:g}" for lr in RATES[count]), "lost at the highest"], rows)


def differences(arms: Sequence[Arm], change: Mapping[str, Any], other: Arm, done: Done) -> str:
    """Final success minus the other method's under the same change; methods without runs are left out."""
    rows = [
        [arm.method, cell(difference)]
        for arm in arms
        if arm.method != other.method
        and (difference := against(replace(arm, **change), replace(other, **change), done))
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
    for count in COUNTS:
        ends = [row["curve"][-1] for row in fresh(count, done)]
        if ends:
            cpu, flops = (np.median([end[what] for end in ends]) for what in ("cpu_s", "flops"))
            rows.append([str(count), f"{cpu:.2f}", f"{flops / 1e9:.1f}", str(len(ends))])
    return table(["updates per batch", "CPU s (median)", "GFLOP (median)", "runs"], rows)


def fresh(count: int, done: Done) -> list[Row]:
    """Every confirmed run from the low start at a number of updates per batch."""
    arms = [replace(arm, updates_per_batch=count) for arm in EVERY]
    return [row for arm in arms for row in confirmed(arm, done).values()]


def matched(what: str, done: Done) -> tuple[float, str]:
    """Success where a run has spent what the cheapest number of updates per batch costs, and that budget.

    A run is followed along its own curve, linearly between its checks; one that ends earlier counts with its end.
    """
    medians = [np.median([row["curve"][-1][what] for row in rows]) for count in COUNTS if (rows := fresh(count, done))]
    budget = float(min(medians))

    def at_budget(row: Row) -> float:
        curve = row["curve"]
        return float(np.interp(budget, [check[what] for check in curve], [check["heldout"] for check in curve]))

    lines = []
    for arm in EVERY:
        found = [confirmed(replace(arm, updates_per_batch=count), done).values() for count in COUNTS]
        if any(found):
            lines.append([arm.method, *(cell([at_budget(row) for row in several]) for several in found)])
    return budget, table(["method", *(f"{count} per batch" for count in COUNTS)], lines)


def smollm2(rows: Sequence[Row]) -> str:
    """The confirmation: final success by method and learning rate, against the untrained model and PMD-mean."""
    if not rows:
        return "No runs yet."
    by_run: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["objective"] != "none":
            method = " ".join([row["objective"], *(f"{key}={value}" for key, value in row["settings"].items())])
            by_run.setdefault((method, row["lr"]), []).append(row)
    untrained = next(np.asarray(row["heldout"]) for row in rows if row["objective"] == "none")
    lines = [["untrained", "–", over_problems(untrained), "–", "–", "–", "–", "–"]]
    for (method, lr), runs in sorted(by_run.items(), key=lambda item: (item[0][1], item[0][0])):
        success = np.mean([run["heldout"] for run in runs], axis=0)
        reference = by_run.get((MEAN.method, lr))
        minus = success - np.mean([run["heldout"] for run in reference], axis=0) if reference else None
        numbers = [
            " / ".join(f"{np.mean([run['phases'][phase][key] for run in runs]):.2g}" for phase in (0, 1))
            for key in ("policy/lambda_hat", "policy/log_ratio_correct", "policy/log_ratio_incorrect")
        ]
        seeds = ", ".join(f"{np.mean(run['heldout']):.3f}" for run in runs)
        difference = "–" if minus is None or method == MEAN.method else over_problems(minus)
        lines.append([method, f"{lr:g}", over_problems(success), seeds, difference, *numbers])
    head = ["method", "lr", "success", "by seed", f"minus {MEAN.method}", "λ̂, phase 1 / 2", "s correct", "s incorrect"]
    return table(head, lines)


def over_problems(values: Sequence[float] | np.ndarray) -> str:
    estimate = bootstrap(values)
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def sections(done: Done, confirmation: Sequence[Row]) -> dict[str, str]:
    """Every table by its heading."""

    def at(count: int) -> dict[str, Any]:
        return {"updates_per_batch": count}

    counts = {f"{count} per batch": at(count) for count in COUNTS}
    high = {f"{count} per batch": {**at(count), "start": "high"} for count in (16, 64)}
    sizes = {f"groups of {size}": {**at(16), "group_size": size} for size in (4, 8, 16)}

    def lags(anchor: str) -> dict[str, Any]:
        return {f"lag {lag}": {"lag": lag, "anchor": anchor} for lag in (4, 16, 64)}

    cpu_s, by_time = matched("cpu_s", done)
    flops, by_flops = matched("flops", done)
    return {
        "Final held-out success, low start": by_variant(EVERY, counts, done),
        **{
            f"Minus {other.method}, low start, {count} updates per batch": differences(EVERY, at(count), other, done)
            for count in COUNTS
            for other in (MEAN, REINFORCE, GRPO)
            if count in (16, 64) or other is MEAN
        },
        f"Success after {cpu_s:.2f} CPU seconds, low start": by_time,
        f"Success after {flops / 1e9:.1f} GFLOP, low start": by_flops,
        "Cost of a run": costs(done),
        "Final held-out success, high start": by_variant(EVERY, high, done),
        "Minus pmd-mean τ = 0.2, high start, 16 updates per batch": differences(MAIN, high["16 per batch"], MEAN, done),
        "Minus pmd-mean τ = 0.2, high start, 64 updates per batch": differences(MAIN, high["64 per batch"], MEAN, done),
        "Final held-out success by group size, 16 updates per batch": by_variant(EVERY, sizes, done),
        "Final held-out success with a lag, anchored at the sampler": by_variant(EVERY, lags("sampler"), done),
        "Final held-out success with a lag, anchor recomputed": by_variant(EVERY, lags("recomputed"), done),
        "Clip ranges, 64 updates per batch": by_variant(CLIPS, {"64 per batch": at(64)}, done),
        "Clip ranges minus pmd-mean τ = 0.2": differences(CLIPS, at(64), MEAN, done),
        "Relatives of PMD-mean at 64 updates per batch": by_variant(
            (MEAN, PARTS[0], *RELATIVES), {"64 per batch": at(64)}, done
        ),
        "Relatives minus PMD-mean at τ = 0.2": differences((PARTS[0], *RELATIVES), at(64), MEAN, done),
        **{
            f"Screen, {count} updates per batch: final held-out success by learning rate": rates(
                count, (*EVERY, *CLIPS), done
            )
            for count in COUNTS
        },
        "First phase, 64 updates per batch, low start": numbers(done, 64, "first"),
        "Last phase, 16 updates per batch, low start": numbers(done, 16, "last"),
        "Lengths where they neither cost nor earn, 16 updates per batch": lengths(done),
        "SmolLM2-135M: 2 batches with 24 updates each (intervals over problems)": smollm2(confirmation),
    }

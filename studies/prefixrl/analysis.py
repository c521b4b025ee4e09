"""Tables of the study, from results.jsonl alone, and which runs count.

Left out: pictures (``plots``), training (``runs``) and what it means (``README.md``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import ARMS, RATES_FROM, TRIAL_SEED

Row = Mapping[str, Any]


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks that were run, in the order of their first run."""
    return list(dict.fromkeys(row["task"] for row in rows if "arm" in row))


def write_tables(rows: Sequence[Row], path: Path) -> None:
    """Write ``tables.md``."""
    path.write_text("\n".join(line for task in tasks_of(rows) for line in of_task(task, rows)))


def trials_of(rows: Sequence[Row], task: str, arm: str) -> dict[float, float]:
    """Final hard pass@1 of the trial seed by rate."""
    task = RATES_FROM.get(task, task)
    trials = [row for row in rows if (row["task"], row.get("arm"), row.get("seed")) == (task, arm, TRIAL_SEED)]
    return {row["lr"]: row["curve"][-1]["train"] for row in trials}


def best_rate(rows: Sequence[Row], task: str, arm: str) -> float:
    """The rate whose trial ended best; the first of the equals."""
    trials = trials_of(rows, task, arm)
    return max(trials, key=lambda rate: trials[rate])


def runs_of(rows: Sequence[Row], task: str, arm: str) -> list[Row]:
    """Runs of all seeds but the trial's, at the rate that its trials chose."""
    trials = trials_of(rows, task, ARMS[arm].trials(task))
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
    arms = [arm for arm in ARMS if runs_of(rows, task, arm)]
    if arms:
        first = runs_of(rows, task, arms[0])[0]["curve"][0]
        lines += [
            f"Start: hard {first['train']:.4f}, held-out {first['heldout']:.4f}. Tabular bound of prefix-only: "
            f"{first['before_cut']:.4f}, were every later step certain.",
            "",
        ]
        tried = [*trials(task, rows), ""] if task not in RATES_FROM else []
        lines += [*tried, *ending(task, arms, rows), "", *behaviour(task, arms, rows), ""]
    return lines


def trials(task: str, rows: Sequence[Row]) -> list[str]:
    """Final hard pass@1 of every arm at every rate, on the trial seed; the best in bold."""
    tried = {arm: trials_of(rows, task, arm) for arm in ARMS}
    rates = sorted({rate for of_arm in tried.values() for rate in of_arm})
    lines = [
        f"| trials, seed {TRIAL_SEED} | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---|" + "--:|" * len(rates),
    ]
    for arm, of_arm in tried.items():
        if of_arm:
            best = best_rate(rows, task, arm)
            shown = {rate: f"{value:.4f}" for rate, value in of_arm.items()}
            shown[best] = f"**{shown[best]}**"
            cells = [shown.get(rate, "") for rate in rates]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
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
        "| arm | rate | seeds | hard pass@1 | hard pass@64 | solved | held-out pass@1 | first token | GFLOP, all | "
        "of these collection | without sharing |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for arm in arms:
        runs = runs_of(rows, task, arm)
        cells = [spread(runs, last(key)) for key in ("train", "train_at_64", "solved", "heldout", "first_token")]
        flops = [statistics.mean(last(key)(run) for run in runs) / 1e9 for key in ("flops", "unshared_flops")]
        collection = runs[0]["ledger"].get("collection", 0.0) / 1e9
        counted = f"{flops[0]:.0f} | {collection:.0f} | {flops[1]:.0f}"
        lines.append(f"| {arm} | {runs[0]['lr']:g} | {len(runs)} | {' | '.join(cells)} | {counted} |")
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

        def both(key: str, runs: Sequence[Row] = runs) -> str:
            means = []
            for index in (0, -1):
                values = [value for run in runs if (value := run["phases"][index].get(key)) is not None]
                means.append(f"{statistics.mean(values):.2f}" if values else "")
            return " to ".join(means) if all(means) else ""

        cells = [both(key) for key in keys]
        norms = [phase["grad_norm"] for run in runs for phase in run["phases"] if "grad_norm" in phase]
        spreads = [phase["grad_norm_sd"] for run in runs for phase in run["phases"] if "grad_norm_sd" in phase]
        norm = f"{statistics.mean(norms):.2f} ± {statistics.mean(spreads):.2f}" if norms else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {norm} |")
    return lines

"""Tables from the stored runs, and the plots beside them.

    python studies/optimizers/page.py    # writes tables.md and docs/images/optimizer-study

Left out: running anything, and what the numbers mean (README.md).
"""

from __future__ import annotations

import statistics
from pathlib import Path

import posttraining
import run
from contenders import CONTENDERS
from finetuning import COMPARISONS
from transformer import COMPARISON
from transformer_page import draw, interval, of_equal_cost, of_finetuning, of_transformer, of_tuning

HERE = Path(__file__).parent
TITLES = {"whole": "whole weights", "lora": "LoRA"}


def of_small_task(task: str) -> list[str]:
    """Held-out results over seeds, cost relative to AdamW, width of the stable range, and where the runs ended."""
    rows = [row for row in run.stored() if row["task"] == task]
    ends = any("sharpness" in row for row in rows)
    lines = [
        "| optimizer (seeds finished) | train loss | test loss | accuracy | CPU s / AdamW | best factor | stable |"
        + (" gradient norm | top Hessian eigenvalue |" if ends else ""),
        "|---|--:|---|---|--:|--:|--:|" + ("--:|--:|" if ends else ""),
    ]
    speed = statistics.median(row["cpu_s"] for row in rows if row["optimizer"] == "AdamW")
    for name in CONTENDERS:
        own = [row for row in rows if row["optimizer"] == name]
        tuning = [row for row in own if row["seed"] == run.TUNING_SEED]
        best = run.best_factor(rows, task, name)
        seeds = [row for row in own if row["seed"] != run.TUNING_SEED and row["factor"] == best]
        done = [row for row in seeds if row["test_loss"] is not None]
        finished = [row["test_loss"] for row in tuning if row["test_loss"] is not None]
        if not done or not finished:
            continue
        cells = [
            f"{name} ({len(done)} of {len(seeds)})",
            f"{statistics.mean(row['train_loss'] for row in done):.4f}",
            *(interval([row[key] for row in done]) for key in ("test_loss", "accuracy")),
            f"{statistics.median(row['cpu_s'] for row in own) / speed:.1f}",
            f"{best:g}",
            f"{sum(loss <= 1.5 * min(finished) for loss in finished)} of {len(tuning)}",
        ]
        if ends:
            cells += [f"{statistics.mean(row[key] for row in done):.2g}" for key in ("gradient_norm", "sharpness")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def of_posttraining() -> list[str]:
    rows = posttraining.stored()
    lines = [
        "| optimizer | learning rate | success, three seeds | greedy | CPU s | stable |",
        "|---|--:|---|---|--:|--:|",
    ]
    for row in rows:
        if row["arm"] == "start":
            lines.append(f"| start | | {row['success']:.3f} | {row['greedy']:.3f} | | |")
    for name in posttraining.ARMS:
        own = [row for row in rows if row["arm"] == name]
        tuning = [row.get("success", 0.0) for row in own if row["seed"] == posttraining.TUNING_SEED]
        if not tuning:
            continue
        best = posttraining.tuned(rows, name)
        done = [row for row in own if row["seed"] in posttraining.SEEDS and row["lr"] == best and "success" in row]
        if not done:
            continue
        stable = sum(value >= 0.9 * max(tuning) for value in tuning)
        cells = [name, f"{best:g}", *(interval([row[key] for row in done]) for key in ("success", "greedy"))]
        cells += [f"{statistics.mean(row['cpu_s'] for row in done):.1f}", f"{stable} of {len(tuning)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cell(task: str, name: str) -> str:
    """Held-out loss of an optimizer on a small task."""
    rows = run.stored()
    best = run.best_factor(rows, task, name)
    key = (task, name, best)
    losses = [
        row["test_loss"]
        for row in rows
        if (row["task"], row["optimizer"], row["factor"]) == key and row["seed"] != run.TUNING_SEED
    ]
    finished = [loss for loss in losses if loss is not None]
    return interval(finished, 2 if task == "digits-vit" else 3) if finished else ""


def summary() -> list[str]:
    """Held-out losses of every small task side by side."""
    tasks = [name for name in run.TASKS if any(row["task"] == name for row in run.stored())]
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    found = {name: [cell(task, name) for task in tasks] for name in CONTENDERS}
    return lines + ["| " + " | ".join([name, *cells]) + " |" for name, cells in found.items() if any(cells)]


def main() -> None:
    text = ["Written by `python studies/optimizers/page.py` from the stored runs.", ""]
    text += ["## Held-out losses", "", *summary(), ""]
    for task in run.TASKS:
        if any(row["task"] == task for row in run.stored()):
            text += [f"## {task}", "", *of_small_task(task), ""]
    if COMPARISON.stored():
        text += ["## Ten million weights", "", *of_transformer(), "", *of_equal_cost(), "", *of_tuning(COMPARISON), ""]
        draw()
    for weights, comparison in COMPARISONS.items():
        if comparison.stored():
            text += [
                f"## SmolLM2-135M, {TITLES[weights]}",
                "",
                *of_finetuning(comparison),
                "",
                *of_tuning(comparison),
                "",
            ]
    if posttraining.stored():
        text += ["## Post-training", "", *of_posttraining(), ""]
    (HERE / "tables.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()

"""Tables and plots of the large transformer: what the rule asks for, equal cost, and the curves.

Left out: the other tables (``page``), and what the numbers mean (README.md).
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from equal_tokens import TUNING_SEED, Comparison, final
from flops import RESULTS as FLOPS
from transformer import COMPARISON

from heliostat.statistics import bootstrap

IMAGES = Path(__file__).parents[2] / "docs" / "images" / "optimizer-study"
T_QUANTILE = {2: 12.71, 3: 4.303}
"""Student's 97.5 % quantile for so many pairs."""
WINDOW = 8
"""Steps over which training losses are averaged for comparisons and plots."""


def interval(values: list[float], digits: int = 3) -> str:
    """A mean with its 95 % bootstrap interval."""
    found = bootstrap(values)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def of_transformer() -> list[str]:
    """Final held-out loss with its cost, and the differences the rule asks for."""
    rows, flops = COMPARISON.stored(), json.loads(FLOPS.read_text())
    lines = [
        "| optimizer | learning rate | test loss, three seeds | accuracy | CPU s per step | GFLOPs per step | "
        "Kronecker-sum minus it, per seed | mean, 95 % t-interval |",
        "|---|--:|---|---|--:|--:|---|---|",
    ]
    ours = COMPARISON.seeds_of(rows, "Kronecker-sum")
    for name in COMPARISON.arms:
        own = COMPARISON.seeds_of(rows, name)
        if not own:
            continue
        pairs = [final(a) - final(b) for a in ours for b in own if a["seed"] == b["seed"]]
        cells = [
            *(name, f"{own[0]['lr']:g}", interval([final(row) for row in own])),
            f"{statistics.mean(row['checks'][-1][2] for row in own):.3f}",
            f"{statistics.mean(row['cpu_s'][-1] / len(row['cpu_s']) for row in own):.2f}",
            f"{(flops['model'] + flops[name]) / 1e9:.0f}",
            *(("", "") if name == "Kronecker-sum" else (", ".join(f"{p:+.3f}" for p in pairs), t_interval(pairs))),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def t_interval(pairs: list[float]) -> str:
    if len(pairs) < 2:
        return ""
    mean = statistics.mean(pairs)
    half = T_QUANTILE[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def of_tuning(comparison: Comparison) -> list[str]:
    rows = [row for row in comparison.stored() if row["seed"] == TUNING_SEED]
    lines = ["| optimizer | test loss on the tuning seed, by learning rate |", "|---|---|"]
    for name in comparison.arms:
        own = sorted((row for row in rows if row["arm"] == name), key=lambda row: float(row["lr"]))
        if own:
            lines.append(f"| {name} | " + ", ".join(f"{row['lr']:g}: {final(row):.3f}" for row in own) + " |")
    return lines


def of_finetuning(comparison: Comparison) -> list[str]:
    """Held-out loss at the end by seed, and what a step costs."""
    rows = comparison.stored()
    lines = ["| optimizer | learning rate | test loss, by seed | accuracy | CPU s per step |", "|---|--:|---|--:|--:|"]
    for name in comparison.arms:
        own = comparison.seeds_of(rows, name)
        if own:
            cells = [
                name,
                f"{own[0]['lr']:g}",
                ", ".join(f"{final(row):.4f}" for row in own),
                f"{statistics.mean(row['checks'][-1][2] for row in own):.4f}",
                f"{statistics.mean(row['cpu_s'][-1] / len(row['cpu_s']) for row in own):.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def smooth(losses: list[float]) -> list[float]:
    """Means of the last ``WINDOW`` values."""
    return [statistics.mean(losses[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(losses))]


def of_equal_cost() -> list[str]:
    """Training loss (mean of the last steps) when an arm has used the CPU time, or FLOPs, of a run of AdamW."""
    rows, flops = COMPARISON.stored(), json.loads(FLOPS.read_text())
    adamw = COMPARISON.seeds_of(rows, "AdamW")
    seconds = statistics.mean(row["cpu_s"][-1] for row in adamw) if adamw else 0.0
    work = COMPARISON.num_steps * (flops["model"] + flops["AdamW"])
    lines = ["| optimizer | steps, loss at AdamW's CPU time | steps, loss at AdamW's FLOPs |", "|---|---|---|"]
    for name in COMPARISON.arms:
        own = COMPARISON.seeds_of(rows, name)
        if not own:
            continue
        by_time = [sum(s <= seconds * 1.001 for s in row["cpu_s"]) for row in own]
        by_work = min(COMPARISON.num_steps, int(work / (flops["model"] + flops[name])))
        curves = [smooth(row["losses"]) for row in own]
        at_time = statistics.mean(curve[n - 1] for curve, n in zip(curves, by_time, strict=True))
        at_work = statistics.mean(curve[by_work - 1] for curve in curves)
        lines.append(f"| {name} | {statistics.mean(by_time):.0f}: {at_time:.3f} | {by_work}: {at_work:.3f} |")
    longer = COMPARISON.seeds_of(rows, "AdamW", times=3)
    if longer:
        losses = ", ".join(f"{final(row):.3f}" for row in longer)
        cost = statistics.mean(row["cpu_s"][-1] for row in longer)
        lines += ["", f"AdamW with three times the steps, {cost:.0f} CPU s: test loss {losses} (by seed)."]
    return lines


def draw() -> None:
    """Training loss of the large transformer against steps, CPU seconds and FLOPs, means of seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heliostat"
    from matplotlib import pyplot

    rows, flops = COMPARISON.stored(), json.loads(FLOPS.read_text())
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
    for name in COMPARISON.arms:
        own = COMPARISON.seeds_of(rows, name)
        if not own:
            continue
        mean = [statistics.mean(values) for values in zip(*(smooth(row["losses"]) for row in own), strict=True)]
        seconds = [statistics.mean(values) for values in zip(*(row["cpu_s"] for row in own), strict=True)]
        steps = range(1, len(mean) + 1)
        work = [step * (flops["model"] + flops[name]) / 1e12 for step in steps]
        for axis, xs in zip(axes, (steps, seconds, work), strict=True):
            axis.plot(xs, mean, label=name, linewidth=1.5)
    for axis, label in zip(axes, ("steps of 512 letters", "CPU seconds", "TFLOPs"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"training loss, mean of {WINDOW} steps")
    axes[2].legend()
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "transformer.svg", metadata={"Date": None})

"""The study's tables and pictures from its data.

python studies/rank1/page.py        writes tables.md here, and pictures to docs/images/rank1-study
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from arms import ARMS
from run import HERE, SWEEP_SEED, best_value, read, score

from heliostat.statistics import interquartile_estimate

PICTURES = HERE.parents[1] / "docs" / "images" / "rank1-study"
Run = dict[str, Any]


def confirmed(runs: list[Run], env: str, name: str) -> list[Run]:
    """The runs of an arm's best value on fresh seeds."""
    value = best_value(runs, env, name)
    return [r for r in runs if (r["env"], r["arm"], r["value"]) == (env, name, value) and r["seed"] != SWEEP_SEED]


def effective(name: str, value: float) -> str:
    arm = ARMS[name]
    if arm.algo != "smac" or arm.key != "learning_rate" or arm.settings.get("direction") == "adam":
        return "–"
    return f"{value / arm.settings.get('damping', 1.0):g}" if "u" not in arm.settings else "lr / ‖g‖²"


def table(runs: list[Run], env: str) -> str:
    lines = [
        "| arm | best of the sweep | lr / damping | return [95 %] | seeds | CPU s | update, ms | update, µs per step |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for name, arm in ARMS.items():
        chosen = confirmed(runs, env, name)
        if not chosen:
            continue
        estimate = interquartile_estimate([score(r) for r in chosen])
        lasts = [r["rows"][-1] for r in chosen]
        update_s = sum(row["update_s"] for row in lasts)
        cost = 1e3 * update_s / sum(row["num_updates"] for row in lasts)
        per_step = 1e6 * update_s / sum(row["step"] for row in lasts)
        cpu = np.mean([row["cpu_s"] for row in lasts])
        lines.append(
            f"| {name} | {arm.key} {chosen[0]['value']:g} | {effective(name, chosen[0]['value'])} "
            f"| {estimate.value:.0f} [{estimate.low:.0f}, {estimate.high:.0f}] | {len(chosen)} "
            f"| {cpu:.1f} | {cost:.1f} | {per_step:.0f} |"
        )
    return "\n".join(lines)


def sweeps(runs: list[Run], env: str) -> str:
    lines = ["| arm | swept | return on the sweep's seed |", "|---|---|---|"]
    for name, arm in ARMS.items():
        found = [r for r in runs if (r["env"], r["arm"], r["seed"]) == (env, name, SWEEP_SEED)]
        if found:
            values = ", ".join(f"{r['value']:g}" for r in found)
            lines.append(f"| {name} | {arm.key} {values} | {', '.join(f'{score(r):.0f}' for r in found)} |")
    return "\n".join(lines)


def probe_table(rows: list[Run]) -> str:
    lines = [
        "| | step | damping | gradient | m = 1 | 4 | 16 | 64 | 256 | tr F | top direction |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cosines = " | ".join(f"{row[f'm={m}']:.2f}" for m in (1, 4, 16, 64, 256))
        lines.append(
            f"| {row['env']} | {row['step']} | {row['damping']:g} | {row['gradient']:.2f} | {cosines} "
            f"| {row['trace']:.1f} | {row['top_share']:.0%} |"
        )
    return "\n".join(lines)


def draw_probe(rows: list[Run]) -> None:
    cells = list(dict.fromkeys((r["env"], r["step"]) for r in rows))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey=True, layout="constrained")
    for axis, (env, step) in zip(axes.flat, cells, strict=True):
        for row in (r for r in rows if (r["env"], r["step"]) == (env, step)):
            counts = (1, 4, 16, 64, 256)
            (line,) = axis.plot(
                counts, [row[f"m={m}"] for m in counts], marker=".", label=f"damping {row['damping']:g}"
            )
            axis.axhline(row["gradient"], color=line.get_color(), linestyle=":", linewidth=1)
        axis.set_xscale("log", base=4)
        axis.set_title(f"{env}, {step} steps", fontsize=9)
    axes[0, 0].set_ylabel("cosine to the exact direction")
    axes[1, 0].set_xlabel("scores m (dotted: the plain gradient)")
    axes[0, 2].legend(fontsize=7)
    figure.savefig(PICTURES / "probe.svg", metadata={"Date": None})


def draw_curves(runs: list[Run], env: str) -> None:
    """Our arms above, the peers below; against steps, and against CPU seconds."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col", sharey=True, layout="constrained")
    for number, name in enumerate(ARMS):
        chosen = confirmed(runs, env, name)
        if not chosen:
            continue
        line = axes[0 if ARMS[name].algo == "smac" else 1]
        for axis, x in zip(line, ("step", "cpu_s"), strict=True):
            points = list(zip(*(r["rows"] for r in chosen), strict=False))
            estimates = [interquartile_estimate([row["return"] for row in point]) for point in points]
            at = [np.median([row[x] for row in point]) for point in points]
            color = f"C{number % 10}"
            axis.plot(at, [e.value for e in estimates], label=name, color=color)
            axis.fill_between(at, [e.low for e in estimates], [e.high for e in estimates], alpha=0.08, color=color)
    axes[1, 0].set_xlabel("environment steps")
    axes[1, 1].set_xlabel("CPU seconds")
    for line in axes:
        line[0].set_ylabel(f"return, {env}")
        line[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(PICTURES / f"{env}.svg", metadata={"Date": None})


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "heliostat"
    PICTURES.mkdir(parents=True, exist_ok=True)
    runs, rows = read(HERE / "results.jsonl"), read(HERE / "probe.jsonl")
    parts = ["# Tables", "## Probe", probe_table(rows)]
    draw_probe(rows)
    for env in dict.fromkeys(r["env"] for r in runs):
        parts += [f"## {env}", table(runs, env), "Sweeps:", sweeps(runs, env)]
        if any(confirmed(runs, env, name) for name in ARMS):
            draw_curves(runs, env)
    Path(HERE / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

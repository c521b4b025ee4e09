"""From the results files to tables.md and the figure.

Averages are over fresh seeds, except in the table of trials. Intervals are 95% bootstrap intervals over seeds, and
differences are taken seed by seed, on the same problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    FRESH,
    METHODS,
    REASON_RATE,
    SCALE_RATE,
    SEEDS,
    STALE,
    TASKS,
    TAUS,
    TRIAL_SEED,
    VARIANTS,
    Arm,
    Done,
    Run,
    arms_in,
    best_rate,
    final,
    rates_in,
)

from heliostat.statistics import bootstrap

Rows = Sequence[Mapping[str, Any]]
CELLS = (*((task, STALE) for task in TASKS), ("lookup-1", STALE), ("lookup-4", FRESH))
LEFT_END = 0.003
"""Where the figure draws a τ of 0."""
HOPS = {"lookup-1": 1, "lookup-2": 2, "lookup-4": 4}


def tables(objectives: Rows, scales: Rows, reasons: Rows, prefixes: Rows, collapse: Rows) -> str:
    """Return every table."""
    done, scaled = Done(objectives), Done(scales)
    parts = {
        "Success by objective": by_objective(done),
        "Difference to PMD-mean, seed by seed": by_difference(done),
        "Trials: success by rate, seed 0": by_rate(done),
        "How far a batch took the policy": by_distance(done),
        "Between REINFORCE, PMD-mean and CISPO": by_variant(Done(reasons), done),
        "τ by number of hops": by_tau(scaled),
        "Log-ratio of a trajectory after the first batch": by_tokens(scaled),
        "Prefixes at equal operations": by_prefix(prefixes),
        "Prefixes: differences, seed by seed": by_prefix_difference(prefixes),
        "Peak, then collapse": by_collapse(collapse),
    }
    head = "# Tables\n\nWritten by `python studies/agents/run.py page`. Mean over seeds, and 95% bootstrap intervals.\n"
    return "\n".join([head, *(f"## {name}\n\n{part}\n" for name, part in parts.items() if part)])


def by_objective(done: Done) -> str:
    """Success at the end, by method and cell."""
    rows = []
    for index, (name, _) in enumerate(METHODS):
        rows.append([name, *(cell(finals(done, arms_in(*one)[index])) for one in CELLS)])
    before = [next((f"{row['before']:.3f}" for row in done.rows if row["world"] == one[0]), "–") for one in CELLS]
    return table(["", *(f"{world}, {count} per batch" for world, count in CELLS)], [["before", *before], *rows])


def by_difference(done: Done) -> str:
    """Success minus PMD-mean's on the same seed."""
    rows = []
    for index, (name, _) in enumerate(METHODS[1:], start=1):
        row = [name]
        for world, count in CELLS:
            arms = arms_in(world, count)
            ours, theirs = confirmed(done, arms[0]), confirmed(done, arms[index])
            row.append(cell([theirs[seed] - ours[seed] for seed in ours.keys() & theirs.keys()]))
        rows.append(row)
    return table(["", *(f"{world}, {count} per batch" for world, count in CELLS)], rows)


def by_rate(done: Done) -> str:
    """The trials, from which rates were chosen."""
    rows = []
    for world, count in CELLS:
        for arm in arms_in(world, count) if world in TASKS else ():  # others take the rates of a task
            found = [(lr, done.find(Run(arm, lr, TRIAL_SEED))) for lr in rates_in(world)]
            tried = ", ".join(f"{lr:g}: {final(row):.3f}" for lr, row in found if row)
            rows.append([world, str(count), arm.objective, tried, f"{best_rate(arm, done) or float('nan'):g}"])
    return table(["world", "updates per batch", "method", "rate: success", "chosen"], rows)


def by_distance(done: Done) -> str:
    """Log-ratios of right and wrong trajectories after the first batch."""
    rows = []
    for world, count in CELLS:
        for arm in arms_in(world, count):
            first = [row["phases"][0] for row in chosen(done, arm).values()]
            if first:
                values = [np.mean([one[key] for one in first if key in one]) for key in ("s_right", "s_wrong", "s_rms")]
                rows.append([world, str(count), arm.objective, *(f"{value:.2f}" for value in values)])
    return table(["world", "updates per batch", "method", "right", "wrong", "root mean square"], rows)


def by_variant(done: Done, others: Done) -> str:
    """Success of the variants in lookups of four hops, and minus REINFORCE's on the same seed."""
    plain = confirmed(others, Arm("lookup-4", "reinforce"))
    rows = []
    for name, settings in VARIANTS:
        arm = Arm("lookup-4", name, settings)
        found = {seed: done.find(Run(arm, REASON_RATE, seed)) for seed in SEEDS}
        values = {seed: final(row) for seed, row in found.items() if row is not None}
        less = [values[seed] - plain[seed] for seed in values.keys() & plain.keys()]
        rows.append([arm.method, cell(list(values.values())), cell(less)])
    return table(["", "success", "minus REINFORCE"], rows)


def by_tau(done: Done) -> str:
    """Success by tau and hops, at one rate."""
    rows = []
    for name, arm in scale_arms("lookup-1"):
        rows.append([name, *(cell(scaled_finals(done, replace(arm, world=world))) for world in HOPS)])
    before = [next((f"{row['before']:.3f}" for row in done.rows if row["world"] == world), "–") for world in HOPS]
    return table(["", *HOPS], [["before", *before], *rows])


def by_tokens(done: Done) -> str:
    """Sampled tokens against the size of log-ratios, and the exponent between one and four hops."""
    rows = []
    for name, arm in scale_arms("lookup-1"):
        tokens, sizes = [], []
        for world in HOPS:
            first = [row["phases"][0] for row in scale_rows(done, replace(arm, world=world))]
            if first:
                tokens.append(np.mean([one["tokens"] for one in first]))
                sizes.append(np.mean([one["s_rms"] for one in first]))
        if len(sizes) == len(HOPS):
            exponent = np.polyfit(np.log(tokens), np.log(sizes), 1)[0]
            rows.append([name, *(f"{n:.1f}: {s:.2f}" for n, s in zip(tokens, sizes, strict=True)), f"{exponent:.2f}"])
    return table(["", *(f"{world}, tokens: nats" for world in HOPS), "exponent"], rows)


def by_prefix(rows: Rows) -> str:
    """Success, cost and first supervised success of the arms."""
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        ours = [row for row in rows if row["arm"] == arm and row["seed"] != TRIAL_SEED]
        trials = ", ".join(
            f"{r['lr']:g}: {r['after']:.3f}" for r in rows if r["arm"] == arm and r["seed"] == TRIAL_SEED
        )
        spent = [sum(row["flops"].get(key, 0) for key in ("collection", "warm_start")) / 1e9 for row in ours]
        episodes = [len(row["phases"]) for row in ours]
        found.append(
            [
                arm,
                trials,
                cell([row["before"] for row in ours][:1]),
                cell([row["after_sft"] for row in ours]) if arm == "supervised" else "–",
                cell([row["after"] for row in ours]),
                f"{np.mean(spent):.1f}" if spent else "–",
                f"{np.mean([row['spent'] for row in ours]) / 1e9:.1f}" if ours else "–",
                f"{np.mean(episodes):.1f}" if ours else "–",
            ]
        )
    head = ["arm", "trials", "before", "after supervised steps", "end", "GFLOP before RL", "GFLOP in all", "RL steps"]
    return table(head, found)


def by_prefix_difference(rows: Rows) -> str:
    """Return success of one arm minus another's on the same seed."""
    found = {(row["arm"], row["seed"]): row["after"] for row in rows if row["seed"] != TRIAL_SEED}
    pairs = (("prefix", "plain"), ("supervised", "prefix"), ("supervised", "plain"))
    differences = [
        [found[ours, seed] - found[theirs, seed] for seed in SEEDS if {(ours, seed), (theirs, seed)} <= found.keys()]
        for ours, theirs in pairs
    ]
    return table(["", "difference"], [[" minus ".join(p), cell(d)] for p, d in zip(pairs, differences, strict=True)])


def by_collapse(rows: Rows) -> str:
    """Of each run: peak, the step at which success is under half of it, and the first findings."""
    found = []
    for row in rows:
        peak, at, half = fall(row["curve"])
        findings = first_findings(row)
        found.append(
            [
                row["arm"],
                str(row["seed"]),
                f"{peak:.2f} at {at}",
                str(half or "–"),
                "; ".join(findings) or "–",
                str(sum(event["action"] == "went back" for event in row["events"])),
                f"{np.mean([one['reward/success'] for one in row['curve'][-3:]]):.2f}"
                + (f", stopped at {row['curve'][-1]['step']}" if row["status"] != "finished" else ""),
                "–" if row["after"] is None else f"{row['after']:.3f}",
            ]
        )
    head = [
        *("arm", "seed", "peak", "below half at", "first step of each finding", "rollbacks", "last three steps"),
        "held-out at the end",
    ]
    return table(head, found)


def fall(curve: Rows) -> tuple[float, int, int | None]:
    """Return the peak of success over three steps, its step, and the first later step below half of it."""
    success = np.array([row["reward/success"] for row in curve])
    smooth = np.convolve(success, np.ones(3) / 3, mode="valid")
    top = int(smooth.argmax())
    below = [index for index in range(top, len(smooth)) if smooth[index] < smooth[top] / 2]
    steps = [row["step"] for row in curve][2:]
    return float(smooth[top]), steps[top], steps[below[0]] if below else None


def first_findings(row: Mapping[str, Any]) -> list[str]:
    """Return each finding with its kind and the first step at which it was made."""
    seen: dict[str, str] = {}
    for event in row["events"]:
        name = event["rule"]
        seen.setdefault(name, f"{name} ({event['level']}) {event['step']}")
    return list(seen.values())


# -- parts -------------------------------------------------------------------------------------------------------------


def chosen(done: Done, arm: Arm) -> dict[int, Mapping[str, Any]]:
    """Return the fresh runs of an arm at the rate of its trials, by seed."""
    rate = best_rate(arm, done)
    rows = {seed: done.find(Run(arm, rate, seed)) for seed in SEEDS} if rate else {}
    return {seed: row for seed, row in rows.items() if row is not None}


def confirmed(done: Done, arm: Arm) -> dict[int, float]:
    """Return final success by seed."""
    return {seed: final(row) for seed, row in chosen(done, arm).items()}


def finals(done: Done, arm: Arm) -> list[float]:
    """Return final success of every fresh seed."""
    return list(confirmed(done, arm).values())


def scale_arms(world: str) -> Iterator[tuple[str, Arm]]:
    """Yield the arms of question 2 with their names."""
    yield "0 (REINFORCE)", Arm(world, "reinforce")
    yield from ((f"{tau:g}", Arm(world, "pmd-mean", {"tau": tau})) for tau in TAUS)


def scale_rows(done: Done, arm: Arm) -> list[Mapping[str, Any]]:
    """Return the runs of an arm of question 2."""
    return [row for seed in SEEDS if (row := done.find(Run(arm, SCALE_RATE, seed))) is not None]


def scaled_finals(done: Done, arm: Arm) -> list[float]:
    """Return final success of every seed of question 2."""
    return [final(row) for row in scale_rows(done, arm)]


def cell(values: Sequence[float]) -> str:
    """Return mean and interval, with the number of seeds where it is not five."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    estimate = bootstrap(values)
    count = "" if len(values) == len(SEEDS) else f" ({len(values)} seeds)"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]{count}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; empty without rows."""
    line = "|" + " --- |" * len(head)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])


def draw(objectives: Rows, scales: Rows, collapse: Rows, path: Path) -> None:
    """Write the figure: objectives by cell, tau by hops, and success of runs that peak and collapse."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    done, scaled = Done(objectives), Done(scales)
    with mpl.rc_context({"svg.hashsalt": "heliostat", "svg.fonttype": "none"}):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
        for index, (name, _) in enumerate(METHODS):
            cells = [(place, finals(done, arms_in(*one)[index])) for place, one in enumerate(CELLS)]
            bars(left, [(place + 0.12 * (index - 2), values) for place, values in cells], label=name, linestyle="none")
        labels = [f"{world}\n{count} per batch" for world, count in CELLS]
        left.set_xticks(range(len(CELLS)), labels, fontsize=7)
        left.set(ylabel="held-out success", ylim=(0, 1), title="objectives")
        for world in HOPS:
            arms = [
                (arm, LEFT_END if arm.objective == "reinforce" else arm.settings["tau"]) for _, arm in scale_arms(world)
            ]
            bars(middle, [(tau, scaled_finals(scaled, arm)) for arm, tau in arms], label=world)
        middle.set(xscale="log", ylim=(0, 1), title="hops and τ", xlabel="τ (0: REINFORCE)")
        middle.set_xticks([LEFT_END, *TAUS], ["0", *(f"{tau:g}" for tau in TAUS)])
        middle.minorticks_off()
        middle.legend(frameon=False, fontsize=7)
        left.legend(frameon=False, fontsize=7)
        for arm, colour in (("healthy", "#2f9470"), ("shadow", "#c9772b"), ("act", "#4a84cf")):
            curves = [[one["reward/success"] for one in row["curve"]] for row in collapse if row["arm"] == arm]
            for number, curve in enumerate(curves):
                smooth = np.convolve(curve, np.ones(3) / 3, mode="valid")
                right.plot(smooth, color=colour, linewidth=0.9, label=arm if not number else None)
        right.set(ylim=(0, 1), title="a rate that rises", xlabel="step")
        right.legend(frameon=False, fontsize=7)
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def bars(axes: Any, points: Sequence[tuple[float, list[float]]], **style: Any) -> None:
    """Draw means with intervals where there are runs."""
    drawn = [(x, bootstrap(values)) for x, values in points if values]
    if drawn:
        ys = [estimate.value for _, estimate in drawn]
        ends = [[e.value - e.low for _, e in drawn], [e.high - e.value for _, e in drawn]]
        axes.errorbar([x for x, _ in drawn], ys, ends, marker=".", capsize=2, **style)

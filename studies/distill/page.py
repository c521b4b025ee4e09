"""Tables of ``run``: success at half and all of the operations, differences to the reward alone, and the rates tried.

python studies/distill/page.py
"""

from __future__ import annotations

import statistics
from itertools import pairwise

from run import ARMS, BUDGET, SEEDS, STARTS, Row, best_rate, final, stored, tuning

QUANTILE = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's 97.5% quantile for so many pairs."""


def by_seed(rows: list[Row], start: str, arm: str) -> dict[int, Row]:
    """Return an arm's runs at its best rate, by seed."""
    if not tuning(rows, start, arm):
        return {}
    best = best_rate(rows, start, arm)
    found = [row for row in rows if (row["start"], row["arm"], row["lr"]) == (start, arm, best)]
    return {row["seed"]: row for row in found if row["seed"] in SEEDS}


def success_at(row: Row, gflop: float) -> float:
    """Interpolate success at a number of operations; 0 for a run that diverged."""
    if row["status"] != "finished":
        return 0.0
    for (_, before, low), (_, after, high) in pairwise(row["curve"]):
        if gflop <= after:
            return float(low + (high - low) * (gflop - before) / (after - before))
    return final(row)


def interval(values: list[float]) -> str:
    """Write a mean with its 95% t-interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = QUANTILE[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]".replace("-", "−")


def table(rows: list[Row], start: str) -> list[str]:
    """One line for each arm, differences seed by seed to the reward alone."""
    lines = ["| arm | rate | seeds | steps | teacher's share | at half | minus reward | at the end | minus reward |"]
    lines.append("|---|--:|--:|--:|--:|---|---|---|---|")
    reward, ends = by_seed(rows, start, "reward"), (BUDGET / 2e9, BUDGET / 1e9)
    for arm in ARMS:
        runs = by_seed(rows, start, arm)
        if not runs:
            continue
        share = statistics.mean(row.get("shares", {}).get("teacher", 0.0) for row in runs.values())
        steps = statistics.median(row["curve"][-1][0] for row in runs.values())
        cells = [arm, f"{best_rate(rows, start, arm):g}", str(len(runs)), f"{steps:.0f}", f"{share:.0%}"]
        for gflop in ends:
            here = {seed: success_at(row, gflop) for seed, row in runs.items()}
            gaps = [value - success_at(reward[seed], gflop) for seed, value in here.items() if seed in reward]
            cells += [interval(list(here.values())), "–" if arm == "reward" or not gaps else interval(gaps)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rates(rows: list[Row]) -> list[str]:
    """Write final success on the tuning seed by learning rate, the chosen one in bold."""
    lines = ["| student | arm | success by rate, tuning seed |", "|---|---|---|"]
    for start in STARTS:
        for arm in ARMS:
            tried = tuning(rows, start, arm)
            best = best_rate(rows, start, arm) if tried else 0.0
            shown = [f"{lr:g}: {tried[lr]:.3f}" for lr in sorted(tried)]
            marked = [f"**{cell}**" if lr == best else cell for lr, cell in zip(sorted(tried), shown, strict=True)]
            lines.append(f"| {start} | {arm} | {', '.join(marked)} |")
    return lines


def main() -> None:
    rows = stored()
    for start in STARTS:
        begins = {row["curve"][0][2] for row in rows if row["start"] == start}
        print(f"{start}, from {', '.join(map(str, sorted(begins)))}\n")
        print("\n".join([*table(rows, start), ""]))
    print("\n".join(rates(rows)))


if __name__ == "__main__":
    main()

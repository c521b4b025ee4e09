"""Tables of ``against_whole``: success, paired differences to whole weights, and costs.

    python studies/lora/against_whole_page.py

Equal time: both arms end where the faster one has taken its last step. A step's time is the arm's median over runs, so
that other programs on the machine count for little; success between two measurements is interpolated. Another table
takes the time of each arm's fastest run instead, the one that other programs disturbed least.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise

from against_whole import RANKS, SEEDS, Row, best_rate, final, kind, of_arm, stored, tuning
from subjects import SUBJECTS

Pick = Callable[[list[float]], float]
QUANTILE = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's 97.5 % quantile for so many pairs."""


def by_seed(rows: list[Row], subject: str, arm: str) -> dict[int, Row]:
    """Return the finished runs of an arm at its kind's best rate."""
    if not tuning(rows, subject, kind(arm)):
        return {}
    best = best_rate(rows, subject, kind(arm))
    found = [row for row in of_arm(rows, subject, arm) if row["seed"] in SEEDS and row["lr"] == best]
    return {row["seed"]: row for row in found if row["status"] == "finished"}


def start_of(rows: list[Row], subject: str) -> float:
    return next(float(row["success"]) for row in rows if (row["what"], row["subject"]) == ("start", subject))


def step_s(runs: dict[int, Row], pick: Pick = statistics.median) -> float:
    """Return CPU seconds of a step, the median over runs."""
    return pick([(row["sample_s"] + row["update_s"]) / row["curve"][-1][0] for row in runs.values()])


def success_at(row: Row, start: float, step: float) -> float:
    """Interpolate success after a number of steps, which need not be whole."""
    points = [[0, start], *row["curve"]]
    for (before, low), (after, high) in pairwise(points):
        if step <= after:
            return float(low + (high - low) * (step - before) / (after - before))
    return final(row)


def at_equal_time(
    rows: list[Row], subject: str, arm: str, pick: Pick = statistics.median
) -> dict[int, tuple[float, float]]:
    """Return by seed the success of an arm and of whole weights when the faster of the two has ended."""
    ours, whole, start = by_seed(rows, subject, arm), by_seed(rows, subject, "whole"), start_of(rows, subject)
    until_s = SUBJECTS[subject].num_steps * min(step_s(ours, pick), step_s(whole, pick))

    def reached(runs: dict[int, Row], seed: int) -> float:
        return success_at(runs[seed], start, until_s / step_s(runs, pick))

    return {seed: (reached(ours, seed), reached(whole, seed)) for seed in ours if seed in whole}


def interval(values: list[float]) -> str:
    """Write a mean with its 95 % t-interval."""
    if len(values) < 2:
        return ""
    mean, half = statistics.mean(values), QUANTILE[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def success_table(rows: list[Row]) -> list[str]:
    """Success of every arm, and its paired difference to whole weights at equal tokens and at equal time."""
    lines = ["| task | arm | rate | rates tried | seeds | success | equal tokens | success of both | equal time |"]
    lines.append("|---|---|--:|--:|--:|--:|---|--:|---|")
    for subject in SUBJECTS:
        whole = by_seed(rows, subject, "whole")
        for arm in RANKS:
            runs = by_seed(rows, subject, arm)
            if not runs:
                continue
            tried = str(len(tuning(rows, subject, kind(arm)))) if arm in ("whole", "rank 8") else "as rank 8"
            mean = statistics.mean(final(row) for row in runs.values())
            cells = [subject, arm, f"{best_rate(rows, subject, kind(arm)):g}", tried, str(len(runs)), f"{mean:.3f}"]
            if arm == "whole" or not set(runs) & set(whole):
                cells += ["", "", ""]
            else:
                tokens = [final(runs[seed]) - final(whole[seed]) for seed in runs if seed in whole]
                pairs = list(at_equal_time(rows, subject, arm).values())
                both = [f"{statistics.mean(values):.3f}" for values in zip(*pairs, strict=True)]
                cells += [interval(tokens), ", ".join(both), interval([ours - theirs for ours, theirs in pairs])]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def cost_table(rows: list[Row]) -> list[str]:
    """What every arm costs: medians over runs, sizes of files where they were measured."""
    lines = ["| task | arm | trained weights | CPU s a step | of it sampling | moved, nats | for trained weights, MB "]
    lines[0] += "| checkpoint, MB | adapter, MB |"
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    files = {(row["subject"], row["arm"]): row for row in rows if row["what"] == "files"}
    for subject in SUBJECTS:
        for arm in RANKS:
            runs = by_seed(rows, subject, arm)
            if not runs:
                continue
            one, sizes = next(iter(runs.values())), files.get((subject, arm), {})
            sampling = statistics.median(row["sample_s"] / row["curve"][-1][0] for row in runs.values())
            moved = statistics.mean(row["kl"] for row in runs.values())
            cells = [subject, arm, f"{one['trained']:,}", f"{step_s(runs):.3f}", f"{sampling:.3f}", f"{moved:.2f}"]
            cells += [f"{one['trained_bytes'] / 1e6:.2f}"]
            cells += [f"{sizes[part] / 1e6:.2f}" if sizes.get(part) else "" for part in ("checkpoint", "adapter")]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def fastest_table(rows: list[Row]) -> list[str]:
    """Write the time of a step by each arm's fastest run, and the difference to whole weights at equal time by it."""
    lines = ["| task | arm | CPU s a step, fastest run | ratio | equal time |", "|---|---|--:|--:|---|"]
    for subject in SUBJECTS:
        whole = by_seed(rows, subject, "whole")
        for arm in RANKS:
            runs = by_seed(rows, subject, arm)
            if not set(runs) & set(whole):
                continue
            pairs = at_equal_time(rows, subject, arm, min).values()
            said = "" if arm == "whole" else interval([ours - theirs for ours, theirs in pairs])
            seconds = step_s(runs, min)
            lines.append(f"| {subject} | {arm} | {seconds:.3f} | {seconds / step_s(whole, min):.2f} | {said} |")
    return lines


def rates_table(rows: list[Row]) -> list[str]:
    """Success on the tuning seed by learning rate."""
    lines = ["| task | weights | success by rate |", "|---|---|---|"]
    for subject in SUBJECTS:
        for each in ("whole", "lora"):
            tried = sorted(tuning(rows, subject, each).items())
            if tried:
                shown = ", ".join(f"{lr:g}: {success:.3f}" for lr, success in tried)
                lines.append(f"| {subject} | {each} | {shown} |")
    return lines


def main() -> None:
    rows = stored()
    print("\n".join([*success_table(rows), "", *cost_table(rows), "", *fastest_table(rows), "", *rates_table(rows)]))


if __name__ == "__main__":
    main()

"""Tables of ``posttraining_sizes``: every setting, and paired differences between optimizers over all of them.

    python studies/optimizers/posttraining_sizes_page.py

Left out: gradient spectra (``gradient_spectra --table``).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from posttraining_sizes import ARMS, NUM_STEPS, SETTINGS, Row, best_rate, of_setting, step_seconds, stored, tuning

CONTROL = ("sgd", "momentum")
AS_CHEAP = ("adamw", *CONTROL)
"""Arms whose runs of equal tokens are of equal time as well."""
QUANTILE = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""Student's 97.5 % quantile for so many pairs; 2.3 beyond."""
BUDGETS = {"tokens": "equal tokens", "time": "equal time"}


def seeds_of(rows: list[Row], size: str, weights: str, arm: str, budget: str) -> dict[int, float]:
    """Success by seed of an arm's best rate: at equal tokens, or at AdamW's CPU time where that differs."""
    own = of_setting(rows, size, weights, arm)
    best = best_rate(own) if tuning(own) else None
    done = [row for row in own if row["lr"] == best and row["seed"] > 0 and "success" in row]
    same = {row["seed"]: row["success"] for row in done if row["num_steps"] == NUM_STEPS}
    if budget == "tokens":
        return same
    timed = {row["seed"]: row["success"] for row in done if row["num_steps"] != NUM_STEPS}
    return timed or (same if arm in AS_CHEAP else {})


def settings_table(rows: list[Row]) -> list[str]:
    lines = ["| size | weights | optimizer | rate | rates tried | CPU s a step | equal tokens | seeds | equal time |"]
    lines.append("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for size, weights in SETTINGS:
        for arm in ARMS:
            found = seeds_of(rows, size, weights, arm, "tokens")
            if not found:
                continue
            own = of_setting(rows, size, weights, arm)
            timed = seeds_of(rows, size, weights, arm, "time")
            seconds = step_seconds(rows, size, weights, arm)
            at_time = f"{statistics.mean(timed.values()):.3f}" if timed and timed != found else ""
            cells = [size, weights, arm, f"{best_rate(own):g}", str(len(tuning(own))), f"{seconds:.3f}"]
            cells += [f"{statistics.mean(found.values()):.3f}", str(len(found)), at_time]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def paired(rows: list[Row], arm: str, others: Iterable[str], budget: str, kind: str) -> list[float]:
    """Differences of an arm to the better of others (by mean in the setting), by setting and seed."""
    found = []
    for size, weights in SETTINGS:
        if kind not in (weights, "all"):
            continue
        ours = seeds_of(rows, size, weights, arm, budget)
        theirs = [seeds_of(rows, size, weights, other, budget) for other in others]
        if not ours or not all(theirs):
            continue
        best = max(theirs, key=lambda seeds: statistics.mean(seeds.values()))
        found += [ours[seed] - best[seed] for seed in ours if seed in best]
    return found


def differences_table(rows: list[Row]) -> list[str]:
    lines = ["| optimizer | against | at | whole | LoRA | all | pairs |", "|---|---|---|---|---|---|--:|"]
    for arm in ARMS:
        for said, others in (("AdamW", ("adamw",)), ("the better SGD", CONTROL)):
            if arm in others or (arm in CONTROL and said != "AdamW"):
                continue
            for budget, name in BUDGETS.items():
                cells = [_interval(paired(rows, arm, others, budget, kind)) for kind in ("whole", "lora", "all")]
                num = len(paired(rows, arm, others, budget, "all"))
                lines.append(f"| {arm} | {said} | {name} | " + " | ".join(cells) + f" | {num} |")
    return lines


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    mean = statistics.mean(values)
    half = QUANTILE.get(len(values), 2.3) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> None:
    rows = stored()
    print("\n".join([*settings_table(rows), "", *differences_table(rows)]))


if __name__ == "__main__":
    main()

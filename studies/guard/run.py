"""Seeded faults against the guard: is each caught before reward falls, and is the run saved?

    python studies/guard/run.py [--seeds 3] [--minutes 7]      one row per run in results.jsonl; finished ones are kept
    python studies/guard/run.py --healthy 20 [--minutes 7]     healthy runs in shadow mode, their logs in healthy.jsonl
    python studies/guard/run.py --table                        the tables of the page

Left out: the choice of thresholds (the page says which were changed, and after what).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from faults import FAULTS, FIRST, injected

from heliostat.config import build_recipe
from heliostat.monitors import default_rules
from heliostat.report.diagnosis import diagnose, replay
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
HEALTHY = HERE / "healthy.jsonl"
FIRST_HEALTHY_SEED = 30
NUM_STEPS = 140
SEEN = ("note", "freeze controllers", "rollback")
SETTINGS = {
    "model.path": "tiny",
    "model.settings": {"hidden_size": 48, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2},
    "run.num_threads": 1,
    "warm_start.num_steps": 300, "warm_start.batch_size": 32, "warm_start.lr": 5e-3,
    "rollout.prompts_per_step": 16, "rollout.group_size": 8, "rollout.max_new_tokens": 4,
    "rollout.max_parity_gap": 100.0,  # else it would end the runs with a broken sampler before the guard is asked
    "objective.name": "pmd-mean", "objective.tau": 0.2,
    "optimizer.lr": 3e-4, "optimizer.schedule": "constant",
    "train.num_steps": NUM_STEPS, "train.updates_per_step": 2, "train.checkpoint_every": 10,
    "train.keep_checkpoints": 4,
    "eval.every": 0, "eval.final_samples": 8, "eval.num_transcripts": 4,
    "guard.panel_every": 10, "guard.panel_problems": 30, "guard.panel_samples": 8,
}  # fmt: skip


def problems(folder: Path) -> Path:
    path = folder / "sums.jsonl"
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(fault: str, mode: str, seed: int, keep: Path | None = None) -> dict:
    """One run, as a row of results; ``keep`` takes what the guard's rules read."""
    with tempfile.TemporaryDirectory() as name, injected(*FAULTS[fault]):
        folder = Path(name)
        task = {"name": "file", "path": str(problems(folder)), "answer_column": "answer",
                "verifiers": [{"name": "numeric"}], "num_train": 70, "num_heldout": 30}  # fmt: skip
        recipe = build_recipe({"task": [task]}, SETTINGS | {"run.seed": seed, "guard.mode": mode})
        began = time.process_time()
        result = run_recipe(recipe, folder / "run", "faults")
        metrics = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["step"] > 0]
        if keep is not None:
            keys = ["step", *dict.fromkeys(rule.key for rule in default_rules())]
            kept = {key: [None if key not in row else _short(row[key]) for row in metrics] for key in keys}
            with keep.open("a") as file:
                file.write(json.dumps({"seed": seed, **kept}) + "\n")
        events = list(read_metrics(result.folder / "events.jsonl"))
        return {
            "fault": fault, "mode": mode, "seed": seed, "status": result.status,
            "reward": [round(row["reward/mean"], 4) for row in metrics],
            "panel": [row["panel/pass@1"] for row in metrics if "panel/pass@1" in row],
            "after": result.after.pass_at_1 if result.after else None,
            "before": result.before.pass_at_1 if result.before else None,
            "findings": [[e["tick"], e["rule"], e["level"]] for e in events if e["action"] in SEEN],
            "rollbacks": [[e["tick"], e["to"]] for e in events if e["action"] == "went back"],
            "diagnosis": diagnose(result.folder).headline,
            "cpu_s": round(time.process_time() - began, 1),
        }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def stored(path: Path = RESULTS) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def false_alarms() -> str:
    """What today's rules say about the recorded healthy runs."""
    found, steps, logs = [], 0, stored(HEALTHY)
    for log in logs:
        keys = [key for key in log if key != "seed"]
        rows = [{key: log[key][i] for key in keys if log[key][i] is not None} for i in range(len(log["step"]))]
        steps += len(rows)
        found += [f"{f.rule} ({f.level}; seed {log['seed']}, step {f.step})" for f in replay(rows)]
    return f"{len(logs)} recorded healthy runs, {steps} steps, false alarms: {', '.join(found) or 'none'}."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", type=int, default=0, help="healthy runs to record, instead of faults")
    parser.add_argument("--minutes", type=float, default=25.0, help="minutes after which no new run is begun")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    done = {(row["fault"], row["mode"], row["seed"]) for row in stored()}
    wanted = [(fault, mode, seed) for seed in range(args.seeds) for fault in FAULTS for mode in ("act", "off")]
    if args.healthy:
        wanted = [("none", "shadow", FIRST_HEALTHY_SEED + number) for number in range(args.healthy)]
        done = {("none", "shadow", log["seed"]) for log in stored(HEALTHY)}
    until = time.monotonic() + 60 * args.minutes
    for fault, mode, seed in wanted:
        if args.table or (fault, mode, seed) in done or time.monotonic() > until:
            continue
        row = one(fault, mode, seed, HEALTHY if args.healthy else None)
        if args.healthy:
            continue
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(stored()) + "\n\n" + false_alarms())


def fell(unguarded: dict, healthy: dict) -> int | None:
    """The first step from ``FIRST`` on whose mean reward over 5 steps is 0.1 below the healthy run's."""
    for step in range(FIRST, min(len(unguarded["reward"]), len(healthy["reward"])) - 4):
        ours, theirs = (sum(run["reward"][step - 1 : step + 4]) / 5 for run in (unguarded, healthy))
        if ours < theirs - 0.1:
            return step
    return None


def final(run: dict) -> float:
    """Mean reward of the last 20 steps; 0 for a run that was stopped."""
    return sum(run["reward"][-20:]) / 20 if run["status"] == "finished" else 0.0


def table(rows: list[dict]) -> str:
    """One line per fault: when it was caught, when reward would have fallen, and where the runs end."""
    runs = {(row["fault"], row["mode"], row["seed"]): row for row in rows}
    head = ("fault", "first alarm (steps after)", "reward falls unguarded", "rollbacks", "final reward guarded",
            "unguarded", "healthy")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    seeds = sorted({row["seed"] for row in rows if ("none", "off", row["seed"]) in runs})
    for fault in FAULTS:
        have = [s for s in seeds if (fault, "act", s) in runs and (fault, "off", s) in runs]
        if not have or fault == "none":
            continue
        caught, falls = [], []
        ends: dict[str, list[float]] = {"act": [], "off": [], "none": []}
        for seed in have:
            act, off, healthy = (
                runs[key] for key in ((fault, "act", seed), (fault, "off", seed), ("none", "off", seed))
            )
            found = [(tick - FIRST, rule) for tick, rule, _ in act["findings"] if tick >= FIRST]
            caught.append(f"{found[0][1]} ({found[0][0]})" if found else "not caught")
            step = fell(off, healthy)
            falls.append("never" if step is None else str(step - FIRST))
            for name, run in (("act", act), ("off", off), ("none", healthy)):
                ends[name].append(final(run))
        backs = ", ".join(str(len(runs[fault, "act", seed]["rollbacks"])) for seed in have)
        means = " | ".join(f"{sum(ends[name]) / len(have):.1%}" for name in ("act", "off", "none"))
        lines.append(f"| {fault} | {'; '.join(caught)} | {', '.join(falls)} | {backs} | {means} |")
    guarded = [row for row in rows if row["fault"] == "none" and row["mode"] == "act"]
    alarms = [finding for row in guarded for finding in row["findings"]]
    steps = sum(len(row["reward"]) for row in guarded)
    num_backs = sum(len(row["rollbacks"]) for row in guarded)
    minutes = sum(row["cpu_s"] for row in rows) / 60
    lines += [
        "",
        f"False alarms in {steps} healthy guarded steps: {len(alarms)} {[alarm[1] for alarm in alarms]}; rollbacks: "
        f"{num_backs}. CPU: {minutes:.0f} min.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

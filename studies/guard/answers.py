"""Several answers are equally right: how many of them does a policy still give after training?

    python studies/guard/answers.py --work FOLDER [--minutes 7]     one row per run in answers.jsonl; resumable
    python studies/guard/answers.py --table                         the tables of the page

"Write a pair of digits that sums to n": five to nine answers are right, and the reward does not care which is given.
Every arm is tuned with the same number of trials on seeds of their own; what is reported are five other seeds.

Left out: larger models and longer answers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

from pairs import pair, valid, write_problems

from heliostat.config import Recipe, build_recipe
from heliostat.monitors.answers import collision
from heliostat.research import open_experiment
from heliostat.statistics import bootstrap, pass_at_k
from heliostat.tracking import read_metrics
from heliostat.train import run_recipe, run_sft

HERE = Path(__file__).parent
RESULTS = HERE / "answers.jsonl"
NUM_SAMPLES = 64
KEPT = 0.05
"""An answer counts as covered if it is at least this share of the right samples; uniform shares are 0.11 to 0.2."""
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (20, 21)
MOST_LOST = 0.01
"""The goal's share of reward: tuning takes the most coverage among settings that lose no more, else the least loss."""
K = 8

BASE = {
    "model.path": "tiny",
    "model.settings": {"hidden_size": 48, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2},
    "run.num_threads": 1,
    "rollout.prompts_per_step": 16, "rollout.group_size": 8, "rollout.max_new_tokens": 6,
    "objective.name": "dr-grpo", "objective.clip_low": 0.2, "objective.clip_high": 0.2,
    "optimizer.lr": 1e-3, "optimizer.schedule": "linear",
    "train.num_steps": 120, "train.updates_per_step": 4, "train.checkpoint_every": 120,
    "eval.every": 0, "eval.final_samples": 1, "eval.num_transcripts": 1,
    "guard.mode": "act", "guard.baseline_start": 0, "guard.baseline_steps": 10, "guard.panel_every": 0,
}  # fmt: skip
WARM_START = {"warm_start.num_steps": 1000, "warm_start.batch_size": 32, "warm_start.lr": 5e-3,
              "warm_start.stop_at": 0.75, "warm_start.eval_every": 50, "train.num_steps": 0,
              "eval.num_problems": 40, "eval.samples_per_problem": 4}  # fmt: skip
VARIETY: dict[str, object] = {"guard.actuator": "variety-bonus"}
ARMS: dict[str, tuple[dict[str, object], str, tuple[float, ...]]] = {
    "off": ({"guard.mode": "off"}, "", ()),
    "PI": (VARIETY, "guard.entropy_target", (0.6, 0.8, 1.0)),
    "bang-bang": ({**VARIETY, "guard.controller": "bang-bang"}, "guard.entropy_target", (0.6, 0.8, 1.0)),
    "clip-higher": ({"guard.mode": "off"}, "objective.clip_high", (0.24, 0.28, 0.4)),
    "KL": ({"guard.mode": "off"}, "objective.kl_ref", (0.01, 0.02, 0.05)),
}
"""What each arm sets, and the setting it is tuned in with its trials."""


def settings_of(arm: str, value: float | None) -> dict[str, object]:
    fixed, key, _ = ARMS[arm]
    return fixed if value is None else {**fixed, key: value}


def make(work: Path, seed: int, settings: Mapping[str, object]) -> Recipe:
    task = {"name": "file", "path": str(work / "pairs.jsonl"), "solution_column": "solution",
            "verifiers": [{"name": "pairs:right"}], "num_train": 300, "num_heldout": 60}  # fmt: skip
    return build_recipe({"task": [task]}, {**BASE, "run.seed": seed, **settings})


def one(work: Path, arm: str, value: float | None, seed: int) -> dict:
    """One run, as a row of results."""
    start = work / f"start-{seed}"
    if not (start / "model").exists():
        run_sft(make(work, seed, WARM_START), run_dir=start)
    recipe = make(work, seed, {**settings_of(arm, value), "model.path": str(start / "model"), "model.settings": {}})
    began = time.process_time()
    name = f"{arm}-{value}-{seed}"
    result = run_recipe(recipe, work / name)
    log = [row for row in read_metrics(result.folder / "metrics.jsonl") if row["step"] > 0]
    keys = ("reward/mean", "policy/entropy", "guard/output")
    curves = {key: [round(row[key], 4) for row in log[9::10]] for key in keys if key in log[-1]}
    return {"arm": arm, "value": value, "seed": seed, "status": result.status,
            "start": measure(make(work, seed, {"model.path": str(start / "model"), "model.settings": {}})),
            "end": measure(make(work, seed, {"model.path": str(work / name / "model"), "model.settings": {}})),
            "curves": curves, "cpu_s": round(time.process_time() - began, 1)}  # fmt: skip


def measure(recipe: Recipe) -> dict[str, float]:
    """Measure the answers of a saved model to held-out prompts."""
    with open_experiment(recipe) as experiment:
        problems = experiment.heldout
        groups = experiment.sample(problems, NUM_SAMPLES, seed=1)
    said: dict[int, list[tuple[int, int] | None]] = {}
    for problem, group in zip(problems, groups, strict=True):
        texts = [pair(problem.question, completion.text) for completion in group.completions]
        said.setdefault(int(problem.question.split()[0]), []).extend(texts)
    covered, effective, named = [], [], []
    for target, answers in said.items():
        found = Counter(answer for answer in answers if answer is not None)
        possible = valid(target)
        covered.append(sum(found[answer] >= KEPT * max(1, found.total()) for answer in possible) / len(possible))
        chance = collision([answer for answer in answers if answer is not None])
        effective.append(1 / chance / len(possible) if chance else 0.0)
        named.append(mean(pass_at_k(len(answers), found[answer], K) for answer in possible))
    each = [sum(pair(p.question, c.text) is not None for c in g.completions) for p, g in
            zip(problems, groups, strict=True)]  # fmt: skip
    return {"reward": mean(each) / NUM_SAMPLES, "coverage": mean(covered), "effective": mean(effective),
            "pass@k": mean(pass_at_k(NUM_SAMPLES, num, K) for num in each), "named": mean(named)}  # fmt: skip


# -- plan and tables ---------------------------------------------------------------------------------------------------


def stored() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


Run = tuple[str, float | None, int]


def plan(rows: list[dict]) -> Iterator[Run]:
    """Trials of every arm, then the seeds that count, all arms equally far at any time."""
    for seed in TUNING_SEEDS:
        for arm, (_, _, values) in ARMS.items():
            yield from ((arm, value, seed) for value in values or (None,))
    for seed in SEEDS:
        yield from ((arm, chosen(rows, arm), seed) for arm in ARMS)


def next_run(rows: list[dict]) -> Run | None:
    """The first run of the plan that is missing."""
    done = {(row["arm"], row["value"], row["seed"]) for row in rows}
    return next((run for run in plan(rows) if run not in done), None)


def chosen(rows: list[dict], arm: str) -> float | None:
    """The tuned setting: the most coverage at no more than ``MOST_LOST`` of the reward, else the least loss."""
    ends = {(row["arm"], row["value"], row["seed"]): row["end"] for row in rows}

    def told(value: float | None, key: str, arm: str = arm) -> float:
        return mean(ends[arm, value, seed][key] for seed in TUNING_SEEDS)

    values = ARMS[arm][2]
    if not values:
        return None
    baseline = mean(ends["off", None, seed]["reward"] for seed in TUNING_SEEDS)
    cheap = [value for value in values if told(value, "reward") >= (1 - MOST_LOST) * baseline]
    if cheap:
        return max(cheap, key=lambda value: told(value, "coverage"))
    return max(values, key=lambda value: told(value, "reward"))


def trials(rows: list[dict]) -> str:
    """Every trial of the tuning seeds."""
    lines = ["| arm | setting | reward | coverage | |", "| --- | --- | --- | --- | --- |"]
    for arm, (_, key, values) in ARMS.items():
        for value in values or (None,):
            found = [row["end"] for row in rows if (row["arm"], row["value"]) == (arm, value)
                     and row["seed"] in TUNING_SEEDS]  # fmt: skip
            mark = "chosen" if value is not None and value == chosen(rows, arm) else ""
            numbers = " | ".join(f"{mean(end[name] for end in found):.3f}" for name in ("reward", "coverage"))
            lines.append(f"| {arm} | {key or '–'} {'' if value is None else value} | {numbers} | {mark} |")
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    """Means over the seeds with bootstrap intervals, and differences to "off" seed by seed."""
    head = ("arm", "seeds", "reward", "coverage", "× off", "reward − off, points", "effective share", "pass@8",
            "named pass@8")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    tuned = {arm: chosen(rows, arm) for arm in ARMS}
    counted = [row for row in rows if row["seed"] in SEEDS and row["value"] == tuned[row["arm"]]]
    ends = {(row["arm"], row["seed"]): row["end"] for row in counted}
    starts = [row["start"] for row in counted if row["arm"] == "off"]
    for arm in ARMS:
        seeds = [seed for seed in SEEDS if (arm, seed) in ends and ("off", seed) in ends]
        if not seeds:
            continue

        def of(key: str, form: str = ".3f", arm: str = arm, seeds: list[int] = seeds) -> str:
            values = [ends[arm, seed][key] for seed in seeds]
            interval = bootstrap(values)
            return f"{mean(values):{form}} [{interval.low:{form}}, {interval.high:{form}}]"

        ratio = mean(ends[arm, s]["coverage"] for s in seeds) / mean(ends["off", s]["coverage"] for s in seeds)
        gaps = [100 * (ends[arm, s]["reward"] - ends["off", s]["reward"]) for s in seeds]
        gap = bootstrap(gaps)
        change = f"{mean(gaps):+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
        cells = (arm, str(len(seeds)), of("reward"), of("coverage"), f"{ratio:.2f}", change, of("effective"),
                 of("pass@k"), of("named"))  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if starts:
        keys = ("reward", "coverage", "effective", "pass@k", "named")
        means = ", ".join(f"{key} {mean(start[key] for start in starts):.3f}" for key in keys)
        lines += ["", f"Before training: {means}."]
    return "\n".join([*lines, "", f"{len(rows)} runs, {sum(row['cpu_s'] for row in rows) / 60:.0f} CPU minutes."])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="folder for problems, warm-started models and runs")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    if not args.table:
        if args.work is None:
            parser.error("--work is needed: a folder outside the repository")
        args.work.mkdir(parents=True, exist_ok=True)
        os.chdir(HERE)  # workers find the verifier here
        write_problems(args.work / "pairs.jsonl")
        while time.monotonic() < until and (run := next_run(stored())) is not None:
            with RESULTS.open("a") as file:
                file.write(json.dumps(one(args.work, *run)) + "\n")
    rows = stored()
    if any(row["seed"] in SEEDS for row in rows):
        print(trials(rows) + "\n\n" + table(rows))


if __name__ == "__main__":
    main()

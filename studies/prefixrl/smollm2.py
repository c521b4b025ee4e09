"""SmolLM2-135M on sums it hardly ever solves: collect with a cap, then RL with and without prefixes.

    OMP_NUM_THREADS=1 python studies/prefixrl/smollm2.py --work /tmp/smollm2    # killed at any time, it goes on

Problems are reasoning-gym's; training is on those that were solved before the cap. What came of it is in smollm2.json.
Left out: tuning, other arms, and more than one seed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliostat.config import Recipe, TaskSection, load_recipe
from heliostat.tasks import load_task
from heliostat.traces import Bank
from heliostat.train import run_eval, run_recipe
from heliostat.train.data.collect import Quota, run_collect

HERE = Path(__file__).resolve().parent
STORE = HERE / "smollm2.json"
MODEL = "smollm2-135m"
ROUND, CAP = 64, 128
NUM_SAMPLES = 64
ARMS: Mapping[str, Mapping[str, Any]] = {
    "rl-8": {},
    "prefix": {"prefix.name": "band", "traces.bank": "sums.bank", "traces.keep": "none"},
}
SOLVED = """214 + 35 - 107: 214+35=249-107=142
68 - 401 + 550: 68-401=-333+550=217
92 + 119 + 346: 92+119=211+346=557
"""
KEPT = ("prefix/success", "prefix/success_without", "reward/success", "reward/zero_signal", "policy/entropy")


def recipe(changes: Mapping[str, Any]) -> Recipe:
    return load_recipe(str(HERE / "smollm2.toml"), changes)


def write_problems() -> None:
    """``sums.jsonl``, and a few more that are only ever there because a run asks for held-out problems."""
    settings = {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 3}
    section = TaskSection.model_validate(
        {"name": "reasoning-gym/chain_sum", "template": "{expression}", "num_train": 24, "num_heldout": 4}
        | {"settings": settings}
    )
    task = load_task(section, 0)
    for name, problems in (("sums", task.train), ("spare", task.heldout)):
        rows = [{"prompt": f"{SOLVED}{problem.prompt}:", "answer": problem.answer} for problem in problems]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_solved() -> dict[str, Any]:
    """``solved.jsonl``; returns what the collection came to."""
    with Bank.open(Path("sums.bank"), create=False) as bank:
        book = bank.query("SELECT problem, round, num, num_success, flops FROM attempts")
        texts = [trace.text for trace in bank]
    first = [row[3] for row in book if row[1] == 0]
    solved = {row[0] for row in book if row[3]}
    chosen = [problem for problem in load_task(recipe({}).task[0], 0).train if problem.problem_id in solved]
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in chosen]
    Path("solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "num_candidates": len(first),
        "num_solved_in_first_round": sum(num > 0 for num in first),
        "num_solved": len(solved),
        "attempts": sum(row[2] for row in book),
        "flops": sum(row[4] for row in book),
        "flops_on_solved": sum(row[4] for row in book if row[0] in solved),
        "traces": texts,
    }


def steps_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in (*KEPT, "compute/total_flops") if key in row} for row in rows]


def measure(model: str, num_solved: int) -> dict[str, Any]:
    """Fresh samples of the solved problems, no prefix."""
    files = {"task.path": "spare.jsonl", "task.heldout_path": "solved.jsonl"}
    sizes = {"task.num_train": 1, "task.num_heldout": num_solved}
    evaluation = run_eval([model], recipe(files | sizes), num_samples=NUM_SAMPLES, greedy=False).evaluations[0]
    return {"pass_at_1": evaluation.pass_at_1, "ci95": evaluation.ci95, "pass_at_64": evaluation.pass_at(NUM_SAMPLES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for problems, bank and runs")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    if not Path("sums.jsonl").exists():
        write_problems()
    run_collect(MODEL, recipe({"rollout.group_size": ROUND}), Path("sums.bank"), Quota(1, CAP))
    results = json.loads(STORE.read_text()) if STORE.exists() else {"collection": write_solved()}
    num_solved = results["collection"]["num_solved"]
    for arm, changes in ARMS.items():
        run = run_recipe(recipe({"task.path": "solved.jsonl", "task.num_train": num_solved, **changes}), Path(arm))
        if run.status != "finished":
            raise SystemExit(f"{arm} was stopped; the same command goes on")
    for name, model in {"start": MODEL, **{arm: f"{arm}/model" for arm in ARMS}}.items():
        if name not in results:
            results[name] = measure(model, num_solved)
            if name in ARMS:
                results[name]["steps"] = steps_of(Path(name))
            STORE.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Wrecked and healthy runs against the guard's rules: is the first finding of each what a person should read first?

    python -m studies.wrecks.run --make [NAME ...]     the runs, one after another, into tests/wrecks
    python -m studies.wrecks.run --warm FOLDER         a model after the base's warm start, in FOLDER/model, for --start
    python -m studies.wrecks.run --table               the table of docs/studies/wrecks.md

Left out: which runs there are (``cases``).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from studies.guard.faults import injected
from studies.wrecks.cases import BASE, HEALTHY, WRECKS, Case
from studies.wrecks.records import RECORDED, record_of
from studies.wrecks.table import table

from heliostat.config import Recipe, build_recipe
from heliostat.train import run_recipe


def problems(folder: Path, kind: str) -> Path:
    """A file of problems of one kind."""
    rng = random.Random(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    if kind == "big":
        pairs = [(rng.randrange(1000, 99999), rng.randrange(1000, 99999)) for _ in range(100)]
    if kind == "two":
        pairs = [(rng.randrange(10, 30), rng.randrange(10)) for _ in range(150)]
        pairs = list(dict.fromkeys(pairs))
    path = folder / f"{kind}.jsonl"
    rows = []
    for a, b in pairs:
        answer = "1" if kind == "same" else str(a + b)
        row = {"prompt": f"{a} + {b} =", "answer": answer}
        if kind == "talk":
            row["solution"] = f" {a} plus {b}. Answer: {answer}"
        if kind == "endless":
            row["solution"] = f"{answer} " * 20
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(case: Case, folder: Path, start: Path | None = None) -> Recipe:
    """The recipe of a case; ``start`` is a model that has had its warm start already."""
    task: dict[str, Any] = {"name": "file", "path": str(problems(folder, case.data)), "answer_column": "answer",
            "verifiers": [{"name": "numeric"}], "num_train": 80, "num_heldout": 20}  # fmt: skip
    if case.data in ("talk", "endless"):
        task["solution_column"] = "solution"
    task |= case.task
    settings = dict(BASE)
    changes = dict(case.settings)
    for key in ("objective",):  # a whole section: another objective has other keys
        if key in changes:
            section = changes.pop(key)
            settings = {k: v for k, v in settings.items() if not k.startswith(f"{key}.")}
            changes |= {f"{key}.{name}": value for name, value in section.items()}
    if changes.get("objective.name", "pmd-mean") != "pmd-mean" and "objective.tau" not in changes:
        settings.pop("objective.tau", None)
    for key in [key for key in changes if key.startswith("task.")]:
        task[key.partition(".")[2]] = changes.pop(key)
    for key in [key for key in changes if key.startswith("model.settings.")]:
        settings["model.settings"] = settings["model.settings"] | {key.rpartition(".")[2]: changes.pop(key)}
    if start is not None and "warm_start.num_steps" not in changes and case.data == "sums":
        settings |= {"model.path": str(start), "model.settings": {}, "warm_start.num_steps": 0}
    return build_recipe({"task": [task]}, settings | changes)


def make(name: str, case: Case, start: Path | None = None) -> None:
    """Make one run and record what the rules read."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, injected(case.fault, case.window):
        recipe = recipe_of(case, Path(place), start)
        result = run_recipe(recipe, Path(place) / "run", name)
        record = record_of(result.folder, recipe)
    (RECORDED / f"{name}.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"{name}: {record['summary']['status']}, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", nargs="*")
    parser.add_argument(
        "--start", type=Path, help="a model to start from in place of the base's warm start, as of healthy-pmd-mean"
    )
    parser.add_argument("--warm", type=Path, help="folder for a run of the base's warm start alone")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.warm is not None:
        args.warm.mkdir(parents=True, exist_ok=True)
        run_recipe(recipe_of(Case("", {"train.num_steps": 1, "optimizer.lr": 1e-12}), args.warm), args.warm, "start")
        return
    if args.table:
        print(table())
        return
    cases = WRECKS | {f"healthy-{name}": case for name, case in HEALTHY.items()}
    for name in args.make or [name for name in cases if not (RECORDED / f"{name}.json").exists()]:
        try:
            make(name, cases[name], args.start)
        except Exception:
            print(name, flush=True)
            traceback.print_exc()


if __name__ == "__main__":
    main()

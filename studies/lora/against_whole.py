"""LoRA against whole weights in post-training: the same steps by the library's own update, from the same start.

    OMP_NUM_THREADS=1 python studies/lora/against_whole.py --work /tmp/lora --minutes 30    # goes on where it was
    python studies/lora/against_whole_page.py

Whole weights and LoRA of rank 8 each try three learning rates on one seed, and one more beyond the best while that is
at an edge, up to four. The other ranks take rank 8's rate, as ``rates`` found. Five further seeds run every arm, with
the same problems and sampling streams by seed. Runs are appended to ``against-whole.jsonl``.

Success is measured along the way, so that one set of runs answers for equal tokens and for equal time. CPU seconds are
of this process, for sampling and updates, without the measurements. Left out: the tasks (``subjects``), the tables
(``against_whole_page``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from subjects import SUBJECTS, Subject
from torch import Tensor

from heliostat.config import LoraSection, Recipe
from heliostat.research import Experiment, TrainingDiverged, open_experiment
from heliostat.rollout import completion_seed
from heliostat.train import run_recipe
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Group

RESULTS = Path(__file__).parent / "against-whole.jsonl"
TUNING_SEED, SEEDS = 0, (1, 2, 3, 4, 5)
MAX_RATES = 4
LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
"""Every learning rate that may be tried."""
RANKS = {"whole": 0, "rank 1": 1, "rank 8": 8, "rank 64": 64}
TUNED = {"whole": "whole", "lora": "rank 8"}
"""The arm whose runs choose the rate of its kind."""
ALPHA = 16
LATE = 1 / 3
"""The last share of steps, whose completions measure how far the policy is from the start."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm."""

    subject: str
    arm: str
    lr: float
    seed: int

    @property
    def key(self) -> Row:
        return {field: getattr(self, field) for field in self.__slots__}


def kind(arm: str) -> str:
    return "lora" if RANKS[arm] else "whole"


def arm_recipe(recipe: Recipe, arm: str) -> Recipe:
    """Return the recipe of an arm from the subject's start."""
    return recipe.model_copy(update={"lora": LoraSection(rank=RANKS[arm], alpha=ALPHA)})


@dataclass
class Bench:
    """A subject's start, and the experiments of its arms; each is opened once and begins again for every run."""

    subject: Subject
    recipe: Recipe
    stack: ExitStack
    opened: dict[str, Experiment] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def start(self) -> Policy:
        """The frozen start, with which runs are compared."""
        return next(iter(self.opened.values())).frozen(self.recipe.model.path)

    def begin(self, run: Run) -> Experiment:
        """Return the arm's experiment at the start, with adapters drawn from the run's seed."""
        if run.arm not in self.opened:
            recipe = arm_recipe(self.recipe, run.arm)
            self.opened[run.arm] = self.stack.enter_context(open_experiment(recipe))
            if not RANKS[run.arm]:
                self.weights = self.opened[run.arm].weights()
        experiment = self.opened[run.arm]
        settings = {"optimizer.lr": run.lr, "run.seed": run.seed, "train.num_steps": self.subject.num_steps}
        if RANKS[run.arm]:
            draw_adapters(experiment, run.seed)
        experiment.restart(experiment.loaded.model.state_dict() if RANKS[run.arm] else self.weights, settings)
        return experiment

    def carry_out(self, run: Run) -> Row:
        """Train one arm, and return its curve, its costs and its distance from the start."""
        experiment, subject = self.begin(run), self.subject
        row: Row = {"what": "run", **run.key, "status": "finished", "curve": []}
        late, sample_s, update_s = list[Group](), 0.0, 0.0
        for index in range(subject.num_steps):
            began, seed = time.process_time(), completion_seed(run.seed, "step", index)
            groups = experiment.sample(experiment.problems(index, self.recipe.rollout.prompts_per_step), seed=seed)
            sampled = time.process_time()
            try:
                experiment.step(groups, seed=seed)
            except TrainingDiverged:
                return row | {"status": "diverged"}
            sample_s, update_s = sample_s + sampled - began, update_s + time.process_time() - sampled
            if index + 1 > (1 - LATE) * subject.num_steps:
                late += groups
            if (index + 1) % subject.check_every == 0:
                row["curve"].append([index + 1, round(subject.success(experiment), 5)])
        row |= {"sample_s": round(sample_s, 3), "update_s": round(update_s, 3), **memory(experiment)}
        return row | {"kl": round(distance(experiment, late, self.start), 4)}


def draw_adapters(experiment: Experiment, seed: int) -> None:
    """Set one factor of every adapter to 0 and draw the other, as when adapters are added."""
    torch.manual_seed(seed)
    for module in experiment.loaded.model.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", True)


def memory(experiment: Experiment) -> Row:
    """Count the trained weights, and the bytes that training holds for them: weights, gradients, optimizer state."""
    safe_step = experiment.updater.safe_step
    trained = sum(parameter.nbytes for parameter in safe_step.parameters)
    state = [tensor for each in safe_step.optimizer.state.values() for tensor in each.values()]
    moments = sum(tensor.nbytes for tensor in state if isinstance(tensor, torch.Tensor))
    number = sum(parameter.numel() for parameter in safe_step.parameters)
    return {"trained": number, "trained_bytes": 2 * trained + moments}


def distance(experiment: Experiment, groups: list[Group], start: Policy) -> float:
    """Estimate the divergence of the policies that sampled the groups from the start, in nats a completion."""
    anchors = [rows for group in experiment.score(groups, start) for rows in group]
    completions = [completion for group in groups for completion in group.completions]
    apart = [float(done.logp_gen.sum()) - float(logp.sum()) for done, logp in zip(completions, anchors, strict=True)]
    return sum(apart) / len(apart)


def measure_files(recipe: Recipe, run: Run, work: Path) -> Row:
    """Run one step by the library's command, and return the bytes of its last checkpoint and of its adapter."""
    data = arm_recipe(recipe, run.arm).model_dump()
    data["train"] |= {"num_steps": 1, "checkpoint_every": 1, "try_export": False}
    data["eval"] |= {"every": 0, "final_samples": 1, "num_problems": 1}
    data["task"][0]["num_heldout"] = 1
    data["guard"]["panel_every"] = 0
    data["audit"]["enabled"] = False
    folder = run_recipe(Recipe.model_validate(data), work / f"files-{run.subject}-{run.arm}".replace(" ", "-")).folder
    last = max((folder / "checkpoints").iterdir())
    return {"what": "files", **run.key, "checkpoint": size_of(last), "adapter": size_of(folder / "adapter")}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_start(subject: Subject, recipe: Recipe, run: Run) -> Row:
    with open_experiment(recipe) as experiment:
        return {"what": "start", **run.key, "success": round(subject.success(experiment), 5)}


def stored() -> list[Row]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def of_arm(rows: list[Row], subject: str, arm: str) -> list[Row]:
    return [row for row in rows if (row["what"], row["subject"], row["arm"]) == ("run", subject, arm)]


def final(row: Row) -> float:
    """Return success after the last step; 0 for a run that did not finish."""
    return float(row["curve"][-1][1]) if row["status"] == "finished" else 0.0


def tuning(rows: list[Row], subject: str, kind: str) -> dict[float, float]:
    """Return final success by learning rate on the tuning seed."""
    tried = [row for row in of_arm(rows, subject, TUNED[kind]) if row["seed"] == TUNING_SEED]
    return {row["lr"]: final(row) for row in tried}


def best_rate(rows: list[Row], subject: str, kind: str) -> float:
    tried = tuning(rows, subject, kind)
    return max(tried, key=lambda lr: tried[lr])


def next_rate(rows: list[Row], subject: str, kind: str) -> float | None:
    """Return the rate that the rule tries next, None when it has tried all."""
    tried = tuning(rows, subject, kind)
    if missing := [lr for lr in SUBJECTS[subject].rates[kind] if lr not in tried]:
        return missing[0]
    best = best_rate(rows, subject, kind)
    step = {min(tried): -1, max(tried): 1}.get(best, 0)
    place = LADDER.index(best) + step
    return LADDER[place] if step and len(tried) < MAX_RATES and 0 <= place < len(LADDER) else None


def plan(rows: list[Row]) -> Iterator[Run]:
    """Subject by subject: all rates, then seed by seed every arm."""
    for subject, about in SUBJECTS.items():
        for each, arm in TUNED.items():
            while (lr := next_rate(rows, subject, each)) is not None:
                yield Run(subject, arm, lr, TUNING_SEED)
        for seed in SEEDS:
            for arm in about.arms:
                yield Run(subject, arm, best_rate(rows, subject, kind(arm)), seed)


def is_stored(rows: list[Row], what: str, run: Run) -> bool:
    return any(row["what"] == what and all(row[field] == value for field, value in run.key.items()) for row in rows)


def keep(rows: list[Row], row: Row) -> None:
    """Append a row to the list and to the file, and print it."""
    rows.append(row)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def check_start(rows: list[Row], subject: str, recipe: Recipe) -> None:
    """Store the start's success, or refuse a start other than that of the stored runs."""
    measured = measure_start(SUBJECTS[subject], recipe, Run(subject, "start", 0.0, TUNING_SEED))
    before = [row["success"] for row in rows if (row["what"], row["subject"]) == ("start", subject)]
    if not before:
        keep(rows, measured)
    elif abs(before[0] - measured["success"]) > 1e-3:
        raise SystemExit(
            f"{subject}: this start solves {measured['success']}, that of the stored runs {before[0]}; go on with the "
            "same --work, or move the stored rows away"
        )


def carry_on(rows: list[Row], runs: Iterable[Run], what: str, work: Path, until_s: float) -> None:
    """Take the runs that are not stored, until so much CPU time is spent."""
    with ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for run in runs:
            if is_stored(rows, what, run):
                continue
            if time.process_time() > until_s:
                print("to be continued")
                return
            if run.subject not in benches:
                stack.close()  # the experiments of the last subject
                subject = SUBJECTS[run.subject]
                benches[run.subject] = Bench(subject, subject.recipe(work / run.subject), stack)
                check_start(rows, run.subject, benches[run.subject].recipe)
            bench = benches[run.subject]
            if what == "files":
                keep(rows, measure_files(bench.recipe, run, work / run.subject))
            else:
                keep(rows, bench.carry_out(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for problems and start models")
    parser.add_argument("--minutes", type=float, default=30.0, help="CPU minutes of this call")
    parser.add_argument("--files", action="store_true", help="measure the bytes of checkpoints and adapters instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, until_s = stored(), 60 * arguments.minutes
    if arguments.files:
        one_step = [Run(subject, arm, 1e-4, TUNING_SEED) for subject in SUBJECTS for arm in RANKS]
        carry_on(rows, one_step, "files", arguments.work, until_s)
    else:
        carry_on(rows, plan(rows), "run", arguments.work, until_s)


if __name__ == "__main__":
    main()

"""One confirmation at a scale somebody trains at: SmolLM2-135M on the study's sums, many updates on few, large batches.

    OMP_NUM_THREADS=1 python studies/pmd/confirmation.py --work /tmp/pmd    # goes on where confirmation.jsonl ends

A run is two batches of rollouts with 24 updates each. The first batch is the untrained model's, so runs of one seed
share it; success is the exact probability of the right answer followed by a line end, at the run's end.

Left out: a screen of its own. Every method has the same two learning rates, and both are reported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heliostat.config import Recipe, load_recipe
from heliostat.models import LoadedModel, encode_problem, encode_solution
from heliostat.research import Experiment, open_experiment
from heliostat.rollout import completion_seed
from heliostat.types import Group, Problem

HERE = Path(__file__).parent
RESULTS = HERE / "confirmation.jsonl"
NUM_PHASES, UPDATES_PER_BATCH, PROMPTS_PER_UPDATE, NUM_HELDOUT = 2, 24, 2, 60
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pmd-mean", {"tau": 0.2}),
    ("grpo", {}),
    ("reinforce", {}),
    ("pmd-mean", {"tau": 0.5}),
)
RATES, SEEDS = (3e-6, 1e-5), (0, 1)
EXAMPLES = "12 + 15 = 27\n7 + 6 = 13\n"


def plan() -> list[dict[str, Any]]:
    """The runs, seed by seed, so that all methods are equally far at any time."""
    return [
        {"objective": name, "settings": settings, "lr": lr, "seed": seed}
        for seed in SEEDS
        for lr in RATES
        for name, settings in METHODS
    ]


class Bout:
    """The untrained model with the parts that all runs share: problems, verifiers, and each seed's first rollouts."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.weights = experiment, experiment.weights()
        self.first: dict[int, list[Group]] = {}
        self.ends = line_ends(experiment.loaded)

    def carry_out(self, key: dict[str, Any]) -> dict[str, Any]:
        """Make one run from the untrained weights."""
        experiment = self.experiment
        experiment.restart(self.weights, settings_of(key))
        started, phases = time.process_time(), []
        for index in range(NUM_PHASES):
            groups = self.rollouts(key["seed"], index)
            step = experiment.step(groups, seed=completion_seed(key["seed"], "order", index))
            phases.append(step.rollout_metrics | experiment.mirror_metrics(step, 16))
        spent_s = time.process_time() - started
        heldout = self.success(experiment.heldout[:NUM_HELDOUT])
        return key | {"heldout": heldout, "phases": phases, "cpu_s": spent_s, "flops": experiment.ledger.spent}

    def rollouts(self, seed: int, phase: int) -> list[Group]:
        """Sample groups with the current weights; in phase 0 those are the untrained ones, so sample only once."""
        if phase == 0 and seed in self.first:
            return self.first[seed]
        num_problems = UPDATES_PER_BATCH * PROMPTS_PER_UPDATE
        problems = self.experiment.problems(phase, num_problems, seed=completion_seed(seed, "problems"))
        groups = self.experiment.sample(problems, seed=completion_seed(seed, "phase", phase))
        if phase == 0:
            self.first[seed] = groups
        return groups

    def success(self, problems: Sequence[Problem]) -> list[float]:
        return success(self.experiment.loaded, problems, self.ends)


def line_ends(loaded: LoadedModel) -> torch.Tensor:
    """Return the ids that end an answer: a token that begins with a line end, or the end of the text."""
    texts = [str(loaded.tokenizer.decode([index])) for index in range(len(loaded.tokenizer))]
    found = [index for index, text in enumerate(texts) if text.lstrip(" ").startswith("\n")]
    return torch.tensor(sorted({*found, *loaded.eos_ids}))


@torch.no_grad()
def success(loaded: LoadedModel, problems: Sequence[Problem], ends: torch.Tensor) -> list[float]:
    """Return each problem's probability of ``" answer"`` and then one of ``ends``, in the order of the problems."""
    asked = []
    for number, problem in enumerate(problems):
        prompt = encode_problem(loaded, problem, chat=False)
        answer = encode_solution(loaded, prompt, f" {problem.answer}")[:-1]
        asked.append((len(prompt.context_ids), len(answer), number, (*prompt.context_ids, *answer)))
    found = [0.0] * len(problems)
    for (length, num_answer), rows in groupby(sorted(asked), key=lambda row: row[:2]):
        alike = list(rows)
        ids = torch.tensor([row[3] for row in alike])
        logits: Any = loaded.model(input_ids=ids, logits_to_keep=num_answer + 1, use_cache=False).logits
        logp = torch.log_softmax(logits.double(), dim=-1)
        said = logp[:, :-1].gather(2, ids[:, length:, None]).sum(dim=(1, 2))
        stopped = logp[:, -1, ends].logsumexp(-1)
        for row, value in zip(alike, (said + stopped).exp().tolist(), strict=True):
            found[row[2]] = value
    return found


def study_recipe(work: Path) -> Recipe:
    """Load the study's recipe, with its problems written into ``work``."""
    return load_recipe(str(HERE / "smollm2.toml"), {"task.path": str(write_problems(work))})


def write_problems(work: Path) -> Path:
    """Every sum of two numbers below 30 behind two solved examples, as rows of a file."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{EXAMPLES}{a} + {b} =", "answer": str(a + b)} for a in range(30) for b in range(30)]
    path = work / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(key: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which a run differs from the study's recipe."""
    return {
        "objective.name": key["objective"],
        **{f"objective.{name}": value for name, value in key["settings"].items()},
        "optimizer.lr": key["lr"],
        "train.num_steps": NUM_PHASES,
        "train.updates_per_step": UPDATES_PER_BATCH,
    }


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def carry_on(work: Path, minutes: float) -> None:
    """Make the missing runs for at most this long; the first line is the untrained model."""
    done, until = read(), time.monotonic() + 60 * minutes
    known = [{name: row.get(name) for name in ("objective", "settings", "lr", "seed")} for row in done]
    missing = [key for key in plan() if key not in known]
    with open_experiment(study_recipe(work)) as experiment, RESULTS.open("a") as file:
        bout = Bout(experiment)
        if not done:
            untrained = {"objective": "none", "heldout": bout.success(experiment.heldout[:NUM_HELDOUT])}
            file.write(json.dumps(untrained) + "\n")
        for key in missing:
            if time.monotonic() > until:
                break
            row = bout.carry_out(key)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{key} -> {np.mean(row['heldout']):.3f} in {row['cpu_s']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the problems")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this many")
    options = parser.parse_args()
    carry_on(options.work, options.minutes)

"""The shared parts of one task's runs: problems, a weak start, its hard set, traces, and success without sampling.

The research API does the work, with the library's collector, bank and supervised updater. Success is measured without
sampling: the right text is unique, so one forward over it gives its probability from every cut on.

Left out: which arms there are (``arms``), one run (``runs``), and what came of it (``analysis``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS

from heliostat.config import OptimizerSection, load_recipe
from heliostat.models import LoadedModel, save_model
from heliostat.optim import Schedule, build_optimizer
from heliostat.research import Experiment, open_experiment
from heliostat.traces import Bank, Trace, tokenizer_fingerprint
from heliostat.train import Display
from heliostat.train.builders import make_feedback
from heliostat.train.data.collect import Collector, Quota, spent_on
from heliostat.train.data.demonstrations import demonstration
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.sft.updater import SupervisedUpdater
from heliostat.train.update.safe_step import SafeStep
from heliostat.types import Cut, Problem

HERE = Path(__file__).parent
NUM_SCREENED = 512  # attempts that must all fail
CAP = 2048  # attempts after which a problem counts as unsolved
EARLIEST_CUT = 0.4  # of the band
FRACTIONS = tuple(number / 10 for number in range(10))
TOKENS = 16384


@dataclass
class Arena(AbstractContextManager["Arena"]):
    """One task, ready for runs.

    Attributes:
        hard: training problems with 0 successes in the first ``NUM_SCREENED`` attempts and one before ``CAP``.
    """

    work: Path
    task_name: str
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        sys.path.insert(0, str(HERE))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # for verifiers
        self.task = TASKS[self.task_name]
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "problems.jsonl").exists():
            self.task.write(self.work / "problems.jsonl", 700, seed=1)
        files = {"task.path": str(self.work / "problems.jsonl"), "traces.bank": str(self.work / "traces.bank")}
        recipe = load_recipe(str(HERE / "recipe.toml"), {**files, **self.task.recipe})
        if not (self.work / "start").exists():
            with open_experiment(recipe) as fresh:
                self._warm_start(fresh)
        start = {"model.path": str(self.work / "start"), "model.settings": {}}
        self.experiment: Experiment = self.stack.enter_context(open_experiment(recipe, start))
        self.weights = self.experiment.weights()
        self._collect()
        self.experiment.tasks = [replace(self.experiment.tasks[0], train=tuple(self.hard))]
        return self

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    @property
    def loaded(self) -> LoadedModel:
        return self.experiment.loaded

    # -- the start --------------------------------------------------------------------------------------------------

    def _warm_start(self, fresh: Experiment) -> None:
        """Take supervised steps on problems of their own until the median training success is the target."""
        updater = supervised(fresh, self.task.start_lr, 4000)
        feedback = make_feedback(fresh.recipe, fresh.bundle, ())
        for index in range(4000):
            lessons = [self._lesson(fresh, digits, n) for n, digits in enumerate(self.task.draw(64, 9000 + index))]
            updater.step(index, lessons, feedback)
            if (index + 1) % self.task.look_every:
                continue
            if np.median(success(fresh, fresh.train)) >= self.task.target:
                break
        else:
            raise SystemExit(f"{self.task_name}: the warm start did not reach its target")
        print(f"{self.task_name}: warm start of {index + 1} steps", file=sys.stderr)
        save_model(fresh.loaded, self.work / "start")

    def _lesson(self, fresh: Experiment, digits: tuple[int, ...], number: int) -> Row:
        """Build a row. T1: a solution. T2: X from the start, or Y after its letter (one in 128 from the start)."""
        problem = Problem("warm", "warm", self.task.prompt(digits), solution=self.task.work(digits))
        if not self.task.choice:
            return solution_row(fresh, problem)
        if number % 2 == 0:
            return solution_row(fresh, replace(problem, solution=self.task.work(digits, "X")))
        row = solution_row(fresh, problem)
        if number == 1 and digits[0] >= 5:  # one row of 64, every other time
            return row
        ids = row.completion.token_ids
        rest = replace(
            row.completion, token_ids=ids[1:], logp_gen=row.completion.logp_gen[1:], entropy=row.completion.entropy[1:]
        )
        return replace(row, prompt=replace(row.prompt, prefix_ids=ids[:1], cut=Cut("letter", 1)), completion=rest)

    def _collect(self) -> None:
        """Collect traces by rejection sampling; the hard set follows from the bank's attempts."""
        experiment, train = self.experiment, self.experiment.train
        rollout = experiment.recipe.rollout.model_copy(update={"group_size": NUM_SCREENED})
        recipe = experiment.recipe.model_copy(update={"rollout": rollout})
        with Bank.open(self.work / "traces.bank") as bank:
            bundle = replace(experiment.bundle, recipe=recipe)
            quota = Quota(1, CAP)
            collector = Collector(recipe, bundle, experiment.tasks, experiment.pool, bank, quota, Display())
            collector.collect(train)
            book = bank.attempts(collector.campaign)
        first = {one.problem_id: one.num_success for one in book if one.round == 0}
        solved = {one.problem_id for one in book if one.num_success}
        self.hard = [p for p in train if p.problem_id in solved and not first[p.problem_id]]
        self.start = {
            "task": self.task_name,
            "num_parameters": self.loaded.num_parameters,
            "num_candidates": len(first),
            "num_easy": sum(num > 0 for num in first.values()),
            "num_unsolved": len(first) - len(solved),
            "num_hard": len(self.hard),
            "attempts": sum(one.num for one in book),
            "flops_all_candidates": sum(one.flops for one in book),
            "flops_first_512": sum(one.flops for one in book if one.round == 0),
            "candidates_p": [float(f"{value:.3g}") for value in sorted(success(experiment, train))],
            "hard_p": [float(f"{value:.3g}") for value in sorted(success(experiment, self.hard))],
        }

    # -- success without sampling -----------------------------------------------------------------------------------

    def check(self, step: int, cpu_s: float) -> dict[str, Any]:
        """Measure success on hard and held-out problems from no prefix, and after every tenth of the right text."""
        ledger = self.experiment.ledger
        train = right_logp(self.experiment, self.hard)
        heldout = right_logp(self.experiment, self.experiment.heldout).sum(dim=1).exp()
        p, num_tokens = train.sum(dim=1).exp(), train.shape[1] - 1  # the end token is not cut
        return {
            "step": step,
            "train": float(p.mean()),
            "train_at_64": float((1 - (1 - p) ** 64).mean()),
            "solved": float((p > 0.5).double().mean()),
            "heldout": float(heldout.mean()),
            "heldout_at_64": float((1 - (1 - heldout) ** 64).mean()),
            "before_cut": float(train[:, : round(EARLIEST_CUT * num_tokens)].sum(dim=1).exp().mean()),
            "first_token": float(train[:, 0].exp().mean()),
            "by_fraction": [float(train[:, round(f * num_tokens) :].sum(dim=1).exp().mean()) for f in FRACTIONS],
            "flops": ledger.spent,
            "unshared_flops": ledger.spent_unshared,
            "cpu_s": cpu_s,
        }

    # -- solutions ----------------------------------------------------------------------------------------------------

    @cached_property
    def stored_traces(self) -> dict[str, Trace]:
        """The oldest success of every hard problem."""
        with Bank.open(self.work / "traces.bank", create=False) as bank:
            picked = bank.pick([p.problem_id for p in self.hard], 1, tokenizer=tokenizer_fingerprint(self.loaded))
        return {key: traces[0] for key, traces in picked.items()}

    def spent_on_hard(self) -> float:
        """What the collection took on hard problems, failed attempts included."""
        with Bank.open(self.work / "traces.bank", create=False) as bank:
            return spent_on(bank, [p.problem_id for p in self.hard])


def right_logp(experiment: Experiment, problems: Sequence[Problem]) -> torch.Tensor:
    """Return the log-probability of each token of each right text; all texts of a task are equally long."""
    return torch.stack(experiment.score_solutions(problems)).double()


def success(experiment: Experiment, problems: Sequence[Problem]) -> np.ndarray:
    """Return the probability of each right text."""
    found: np.ndarray = right_logp(experiment, problems).sum(dim=1).exp().numpy()
    return found


def solution_row(experiment: Experiment, problem: Problem) -> Row:
    """Turn a problem's solution into a row to be trained on."""
    assert problem.solution is not None
    return demonstration(experiment.loaded, experiment.bundle.prompt(problem), problem.solution)


def supervised(experiment: Experiment, lr: float, num_steps: int) -> SupervisedUpdater:
    """Build the library's supervised updater at a constant rate after a short warm-up."""
    optimizer = build_optimizer(OptimizerSection(name="adamw", lr=lr), experiment.loaded.model)
    return SupervisedUpdater(
        policy=Policy(experiment.loaded, temperature=1.0, shared_prompt=False),
        safe_step=SafeStep(optimizer, 1.0, 3),
        schedule=Schedule(lr, num_steps, "constant", warmup_steps=5),
        runtime=experiment.runtime,
        tokens_per_microbatch=TOKENS,
    )
